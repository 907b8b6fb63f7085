"""The command line: the roof over the core and its satellites."""

from __future__ import annotations

import sys

from ddq_search.errors import DDQError


def main() -> None:
    """Runs the command line; a user's mistake is one message on stderr and exit code 1 (2 for wrong usage)."""
    try:
        from ddq_search.cli.app import app

        app()
    except DDQError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command line speaks to people
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
