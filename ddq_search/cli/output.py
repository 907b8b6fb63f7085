"""Where the commands write to: a terminal as wide as it is, 180 columns elsewhere."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from ddq_search.cli import Interrupted
from ddq_search.errors import RunError

console = Console() if sys.stdout.isatty() else Console(width=180)


def tell(text: str) -> None:
    """Prints a line as it is: no markup, no colours, not broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What happens inside writes ``path``; an error of the operating system names it.

    Raises:
        RunError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; choose a writable place with free space"
        ) from error


@contextlib.contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Ctrl-C inside becomes `Interrupted`, which says how to go on; also where a library made another error of it."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where the shell lets jobs ignore it
        signal.signal(signal.SIGINT, press)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if pressed or isinstance(error, KeyboardInterrupt):
            raise Interrupted(remedy) from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
