"""The built-in payloads: entries of the form a scenario's author writes for an image of their own."""

from __future__ import annotations

from bench.model import HttpCheck, Payload, Ready

READY_LINE = "bench-ready"

BUILTIN: dict[str, Payload] = {
    "httpd": Payload(
        name="httpd",
        command=("/bin/payload-httpd",),
        env={"BENCH_PORT": "8080"},
        ready=Ready(line=READY_LINE),
        reply=HttpCheck(port=8080, path="/", status=200),
    ),
    "idle": Payload(name="idle", command=("/bin/payload-idle",), ready=Ready(line=READY_LINE)),
}
"""By name; the files are in the second layer of the default image."""
