"""The command line: the roof over the core and its satellites."""

from __future__ import annotations

import sys

from ddq_search.errors import DDQError


class Interrupted(Exception):  # noqa: N818 - no error
    """The user pressed Ctrl-C; the message says how to go on. Typer would turn `KeyboardInterrupt` into silence."""


def main() -> None:
    """Runs the command line; a user's mistake is one message on stderr and exit code 1 (2 for wrong usage)."""
    try:
        from ddq_search.cli.app import app

        app()
    except DDQError as error:
        _stop(f"error: {error}", 1)
    except (Interrupted, KeyboardInterrupt) as interrupt:
        _stop("; ".join(["interrupted", *map(str, interrupt.args)]), 130)
    except OSError as error:
        _stop("error: " + ": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - the command line speaks to people
    raise SystemExit(code) from None
