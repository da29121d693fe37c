"""An image that is not ours: Debian's nginx with the libraries it needs, packed as `docker save` would."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

from bench import process

_CONF = """\
daemon off;
user root;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server { listen 8000; location / { return 200 "from nginx\\n"; } }
}
"""
_ETC = {"etc/nginx.conf": _CONF, "etc/passwd": "root:x:0:0::/:/bin/sh\n", "etc/group": "root:x:0:\n"}


def libraries(program: str) -> list[str]:
    """Paths of the shared libraries that the dynamic linker would load, itself included."""
    said = process.run(["ldd", program], timeout=30).stdout
    return sorted({match for line in said.splitlines() for match in re.findall(r"(/\S+)", line)})


def _layer(program: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("tmp", "proc", "sys", "dev", "run", "etc"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for path in (program, *libraries(program)):
            data = Path(path).resolve().read_bytes()
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
        for name, text in _ETC.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o644
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def save_nginx(target: Path) -> Path:
    """Write the archive to `target` and return it."""
    layer = _layer("/usr/sbin/nginx")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/usr/sbin/nginx", "-c", "/etc/nginx.conf"], "Env": ["FROM_IMAGE=yes"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    raw = json.dumps(config).encode()
    name = hashlib.sha256(raw).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": ["nginx:test"], "Layers": ["l/layer.tar"]}]
    files = {f"{name}.json": raw, "l/layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(target, "w") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target


SCENARIO = """\
schema = 1
name = "nginx"
drivers = ["container", "vm"]
image = {image!r}
payload = "nginx"
rounds = 1
warmups = 0
settle = 0.2
timeout = "90 s"

[count]
default = 2
vm = 1

[limits]
memory = "256 MiB"

[payloads.nginx]
command = ["/usr/sbin/nginx", "-c", "/etc/nginx.conf"]
ready = {{ port = 8000 }}
reply = {{ port = 8000, path = "/" }}
"""
