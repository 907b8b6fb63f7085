"""Commands of ddq-search in forks of one warm process, killed at chosen moments.

A *moment* is something a run does: a training step, the start of a stage, the writing of a file. Its label says which;
a resumed run reaches the moments that are left under the same labels. `ForkServer` starts this file as a program, which
reads one JSON request per line and answers each with one JSON line; imports are paid for once.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Moment:
    """A moment of an uninterrupted run, and how long after the start of the trace it came."""

    label: str
    at_s: float

    @property
    def kind(self) -> str:
        """What the run was doing: the label without its numbers."""
        return re.sub(r"\d+", "", self.label).strip()


@dataclass(frozen=True)
class Kill:
    """Which signal a run gets, and how long after which moment."""

    label: str
    after_s: float
    signal: int = signal.SIGKILL


class ForkServer:
    """The warm process; use it as a context."""

    def __enter__(self) -> ForkServer:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def run(self, arguments: Sequence[str], log: Path, kill: Kill | None = None) -> int:
        """Runs ``ddq-search`` with arguments; returns its exit code, or minus the signal that ended it.

        Output and moments go to ``log`` and ``log.moments``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": list(arguments), "log": str(log), "kill": kill and asdict(kill)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline()))


def moments(log: Path) -> list[Moment]:
    """Returns the moments of a run in their order."""
    lines = (log.parent / f"{log.name}.moments").read_text().splitlines()
    return [Moment(label, float(at)) for at, _, label in (line.partition(" ") for line in lines)]


def chosen(run: Sequence[Moment], count: int, generator: random.Random, number: int = signal.SIGKILL) -> list[Kill]:
    """Returns ``count`` kills in the order of the run, each kind of moment in turn, and at random within the kind.

    A kill falls between its moment and the next one, wherever in the code that is.
    """
    kinds: dict[str, list[int]] = {}
    for index, moment in enumerate(run[:-1]):
        kinds.setdefault(moment.kind, []).append(index)
    order = list(kinds)
    generator.shuffle(order)
    places: set[int] = set()
    while len(places) < count:
        for kind in order[: count - len(places)]:
            places.add(generator.choice(kinds[kind]))
    return [
        Kill(run[i].label, generator.random() * (run[i + 1].at_s - run[i].at_s), number) for i in sorted(places)
    ]  # fmt: skip


# -- the warm process -----------------------------------------------------------------------------------------------


def _watch(reached: Callable[[str], None]) -> None:
    """Lets a run tell its moments."""
    from ddq_search import joint, record
    from ddq_search.cli import runs
    from ddq_search.stages import Stages
    from ddq_search.supernet import Supernet

    class Steps:
        def __enter__(self) -> Steps:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def begin(self, phase: str, total: int, done: int) -> None:
            self.phase, self.done = phase, done
            reached(f"begin {phase}")

        def step(self, facts: object) -> None:
            self.done += 1
            reached(f"step {self.phase} {self.done}")

        def note(self, text: str) -> None:
            pass

    def told(owner: Any, name: str, label: Callable[..., str]) -> None:
        plain = getattr(owner, name)

        def telling(*arguments: Any, **named: Any) -> Any:
            reached(label(*arguments))
            return plain(*arguments, **named)

        setattr(owner, name, telling)

    runs.progress_for = lambda console: Steps()  # type: ignore[assignment, return-value]
    told(joint, "policies_of", lambda *_: "projection")
    told(joint, "fill_front", lambda *_: "filling")
    told(Stages, "test", lambda *_: "test")
    told(Supernet, "calibrate", lambda *_: "calibration")
    told(record, "write_atomically", lambda path, data: f"write {path.name}")
    told(record.RunDirectory, "_append_history", lambda _, row: f"history {row['phase']} {row['epoch']}")
    told(record.RunDirectory, "remove_checkpoint", lambda _, name: f"remove {name}")


def _run(arguments: Sequence[str], log: str, label: str | None, at: int) -> None:
    """Becomes the command: never returns."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    trace = os.open(f"{log}.moments", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.perf_counter()

    def reached(found: str) -> None:
        os.write(trace, f"{time.perf_counter() - began:.6f} {found}\n".encode())
        if found == label:
            os.write(at, b".")

    from ddq_search.cli import main

    code: Any = 1
    try:
        _watch(reached)
        sys.argv = ["ddq-search", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _answer(request: dict[str, Any]) -> int:
    kill = request["kill"]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _run(request["arguments"], request["log"], kill and kill["label"], write)
    os.close(write)
    if os.read(read, 1) and kill:  # nothing is read where the run ends before
        time.sleep(kill["after_s"])
        os.kill(child, kill["signal"])
    status = os.waitpid(child, 0)[1]
    os.close(read)
    return os.waitstatus_to_exitcode(status)


def _serve() -> None:
    import torch

    import ddq_search.baselines
    import ddq_search.cli.runs
    import ddq_search.search
    import ddq_search.solve  # noqa: F401 - every fork has them already

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(f"{_answer(json.loads(line))}\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
