#!/usr/bin/env bash
# Bring a fresh machine to where `bench` works: system packages, then .venv with the pinned versions of
# requirements.lock. Idempotent; a second run costs a second. Exit 3: this host can't (what to do is printed).
set -euo pipefail
cd "$(dirname "$0")/.."

# Proved on Debian 12. Ubuntu 24.04 has the same names, save for what is said below; it was never run there.
#   python3-venv python3-dev gcc libc6-dev pkg-config libvirt-dev   libvirt-python has no wheel, it is compiled
#   qemu-system-x86 qemu-utils ipxe-qemu                            the hypervisor; ipxe-qemu: the stock NIC's ROM
#   libvirt-daemon libvirt-daemon-driver-qemu                       the QEMU driver that qemu:///embed loads
#   busybox-static e2fsprogs erofs-utils kmod                       the default image, guest disks, guest modules
#   skopeo ca-certificates                                          images by reference
#   libseccomp2                                                     compiles the containers' filter
packages=(
    python3 python3-venv python3-dev gcc libc6-dev pkg-config libvirt-dev
    qemu-system-x86 qemu-utils ipxe-qemu libvirt-daemon libvirt-daemon-driver-qemu
    busybox-static e2fsprogs erofs-utils kmod skopeo ca-certificates libseccomp2
)
# What `bench kernel build` makes the kernel of vm:micro and vm:clone of.
kernel_packages=(linux-source gcc make flex bison bc libelf-dev xz-utils binutils)
# What only the tests use: a server of Debian's that is not ours, packed into an image and run in every driver; engines
# and a registry to compare with; what the optional storages (btrfs, reflink, fuse-overlayfs), port publishing and
# rootless containers (uidmap, passt) need.
test_packages=(
    nginx-light docker.io runc docker-registry nftables btrfs-progs xfsprogs fuse-overlayfs uidmap passt iproute2
    util-linux
)
# What `make bench-runtime` races against.
benchmark_packages=(bubblewrap crun runc lxc docker.io iproute2)
# What `make test-rig` builds its outer guest with.
rig_packages=(mmdebstrap debian-archive-keyring)
case "${1:-}" in
    --test) packages+=("${test_packages[@]}" "${kernel_packages[@]}") ;;
    --kernel) packages+=("${kernel_packages[@]}") ;;
    --benchmarks) packages+=("${benchmark_packages[@]}") ;;
    --rig) packages+=("${rig_packages[@]}") ;;
esac

die() { printf 'setup: %s\n' "$1" >&2; exit 3; }

[[ "$(uname -s)" == Linux ]] || die "bench measures Linux hosts; this is $(uname -s)."
[[ "$(uname -m)" == x86_64 ]] || die "bench is proved on x86-64 only; this is $(uname -m)."

missing=()
if [[ "${BENCH_SKIP_PACKAGES:-}" == 1 ]]; then packages=(); fi
if command -v dpkg-query >/dev/null; then
    for name in "${packages[@]}"; do
        [[ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" == installed ]] || missing+=("$name")
    done
else
    missing=("${packages[@]}")
fi
if ((${#missing[@]})); then
    command -v apt-get >/dev/null ||
        die "no apt-get here. Install what corresponds to these Debian packages, then call again with BENCH_SKIP_PACKAGES=1: ${missing[*]}"
    [[ "$(id -u)" == 0 ]] || die "run as root, or first: sudo apt-get install -y --no-install-recommends ${missing[*]}"
    echo "setup: installing ${missing[*]}"
    # Services of these packages are not wanted: a policy that refuses their start keeps the host as it was.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    wait=(-o DPkg::Lock::Timeout=300) # a fresh machine may be busy with its own upgrades
    apt-get "${wait[@]}" update -q >/dev/null
    apt-get "${wait[@]}" install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi

# libvirt's QEMU driver does not open without the account it would give QEMU; Debian makes that with the daemon's
# package, which bench does not need.
if ! getent passwd libvirt-qemu >/dev/null; then
    [[ "$(id -u)" == 0 ]] || die "run as root, or first: sudo useradd --system --user-group libvirt-qemu"
    echo "setup: making the system account libvirt-qemu"
    useradd --system --user-group --home-dir /var/lib/libvirt --no-create-home --shell /usr/sbin/nologin libvirt-qemu
fi

python=${BENCH_PYTHON:-/usr/bin/python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$python is not Python 3.11 or newer; name one with BENCH_PYTHON=/path/to/python3."

stamp=.venv/.installed
want=$(cat requirements.lock pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
if [[ ! -e $stamp || "$(cat $stamp)" != "$want" ]]; then
    echo "setup: making .venv with the versions of requirements.lock"
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
    printf '%s' "$want" > $stamp
fi
