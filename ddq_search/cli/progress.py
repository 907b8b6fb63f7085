"""Progress for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL_S = 10.0


class TerminalProgress:
    """One bar per phase; implements `ddq_search.training.Progress`."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<16}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[facts]}"), console=console, refresh_per_second=4,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, phase: str, total: int, done: int) -> None:
        """A phase starts."""
        self._task = self._bars.add_task(phase, total=total, completed=done, facts="")

    def step(self, facts: Mapping[str, str]) -> None:
        """One more step."""
        if self._task is not None:
            self._bars.update(self._task, advance=1, facts="  ".join(f"{key} {value}" for key, value in facts.items()))

    def note(self, text: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)


class PlainProgress:
    """A line now and then, for logs; implements `ddq_search.training.Progress`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase, self._total, self._done, self._start = "", 0, 0, 0
        self._began = self._told = 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, phase: str, total: int, done: int) -> None:
        """A phase starts."""
        self._phase, self._total, self._done, self._start = phase, total, done, done
        self._began = self._told = time.monotonic()
        if done < total:
            self.note(f"{phase}: {total} steps" + (f", {done} done before" if done else ""))

    def step(self, facts: Mapping[str, str]) -> None:
        """One more step; tells every ten seconds and at the end."""
        self._done += 1
        now = time.monotonic()
        if now - self._told < _PLAIN_INTERVAL_S and self._done < self._total:
            return
        self._told = now
        left = (now - self._began) / (self._done - self._start) * (self._total - self._done)
        shown = ", ".join(f"{key} {value}" for key, value in facts.items())
        self.note(f"{self._phase}: {self._done}/{self._total}, {shown}, {left:.0f} s left in this phase")

    def note(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_for(console: Console) -> TerminalProgress | PlainProgress:
    """Returns what suits the output."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)
