#!/bin/bash
# What the rig proves, stage by stage. A stage that fails does not keep the next from running; status: how many failed.
# Limits are far above what is needed: nothing here is about time.
source /job/job.env # STAGES, DRIVERS, COUNT, TESTS
python=/opt/venv/bin/python
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
failed=0

# stage NAME SECONDS COMMAND...: its output goes to /out/NAME.log too
stage() {
    local name=$1 limit=$2 started=$SECONDS status
    shift 2
    [[ ",$STAGES," == *",$name,"* ]] || return 0
    echo "rig: $name starts at $SECONDS s"
    timeout -k 10 "$limit" "$@" 2>&1 < /dev/null | tee "/out/$name.log"
    status=${PIPESTATUS[0]}
    ((status == 0)) || failed=$((failed + 1))
    echo "rig: $name $([[ $status == 0 ]] && echo passed || echo "FAILED with $status") after $((SECONDS - started)) s"
}

prepare() {
    modprobe -a kvm-amd overlay veth bridge tun loop || return 1
    udevadm settle
    ip link set lo up
    systemd-detect-virt
    uname -a
    $python /job/patient.py
}

doctor() {
    $python -m bench doctor --json > /out/doctor.json
    local status=$?
    $python -m bench doctor
    ((status == 0)) || return $status
    $python /job/judge.py doctor /out/doctor.json
}

density() {
    $python -m bench run density --drivers "$DRIVERS" --count "$COUNT" --rounds 1 --set warmups=0 --set 'timeout="10 min"' \
        --set 'stop_timeout="2 min"' --results /out/results || return
    $python /job/judge.py run /out/results "$DRIVERS" "$COUNT"
}

report() {
    $python -m bench report --results /out/results "$(ls /out/results | tail -n 1)" --output /out/report.html
}

tests() {
    eval "set -- $TESTS"
    $python -m pytest -vv -p no:cacheprovider -ra --durations=15 --timeout 400 --require=root,libvirt \
        --junit-xml=/out/tests.xml "$@"
}

export python DRIVERS COUNT TESTS
export -f prepare doctor density report tests
STAGES="prepare,$STAGES"
stage prepare 1800 bash -c prepare
stage doctor 900 bash -c doctor
stage density 3600 bash -c density
stage report 900 bash -c report
stage tests 7200 bash -c tests
dmesg > /out/dmesg.log
exit $failed
