"""Entry point: runs the verb, turns errors into one clear message and an exit code. The only place that exits."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import click

from bench.errors import BenchError, Interrupted


def main() -> NoReturn:
    """Run the command line."""
    from bench.cli import cli

    try:
        code = cli.main(standalone_mode=False)
    except BenchError as error:
        code = _say(error.message, error.hint, error.exit_code)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "bench"
        code = _say(error.format_message(), f"{where} --help", 2)
    except Interrupted as interrupted:
        code = _say("interrupted", None, interrupted.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _say("interrupted", None, 130)
    except BrokenPipeError:
        # Whoever read us has gone; keep the interpreter from complaining about it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # a fault of ours: the user gets a sentence, the developer a traceback on request
        if os.environ.get("BENCH_DEBUG"):
            traceback.print_exc()
        code = _say(
            f"internal error: {type(error).__name__}: {error}", "set BENCH_DEBUG=1 for a traceback and report it", 1
        )
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str, hint: str | None, code: int) -> int:
    sys.stderr.write(f"bench: error: {message}\n" + (f"bench: hint: {hint}\n" if hint else ""))
    return code


if __name__ == "__main__":
    main()
