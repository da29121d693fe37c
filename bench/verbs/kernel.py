"""`bench kernel`: the guest kernels of this machine."""

from __future__ import annotations

from bench.paths import cache_dir
from bench.verbs.out import emit_json


def build(as_json: bool) -> int:
    """Build the kernel of vm:micro and vm:clone, unless it is there."""
    import click
    import msgspec

    from bench.vm.kernel_build import build_micro

    made = build_micro(cache_dir())
    if as_json:
        emit_json(msgspec.to_builtins(made))
    else:
        click.echo(f"kernel {made.vmlinuz}: Linux {made.release} from {made.package}")
    return 0
