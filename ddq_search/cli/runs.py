"""The commands that search and show what was found: search, solve, report, compare, demo."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ddq_search import distributed
from ddq_search.cli import assembly
from ddq_search.cli.deployment import export_formats, verify_export
from ddq_search.cli.lookups import tell_trust
from ddq_search.cli.output import console, resumable, tell, writing
from ddq_search.cli.progress import progress_for
from ddq_search.cli.settings import read_config
from ddq_search.cli.tables import front_table, price_text
from ddq_search.config import BudgetConfig, RunConfig, load_config
from ddq_search.cost import LATENCY
from ddq_search.errors import ConfigError, DDQError, VerificationError
from ddq_search.judgement import Front
from ddq_search.listing import some
from ddq_search.record import RunDirectory, locked

DEMO: dict[str, Any] = {
    "model.name": "resnet8",
    "data.name": "digits",
    "device.profile": "cortex-a53-rpi3-lowbit-neon",
    "budgets.latency": "90%",
    "budgets.flash": "40",
    "training.threads": 1,
}


def search(
    config: Path | None,
    flags: Mapping[str, Any],
    pins: list[str] | None,
    settings: list[str] | None,
    out: Path | None,
    *,
    resume: bool,
) -> None:
    """Searches; ``--resume`` with only ``--out`` and ``settings`` takes the configuration of the run itself."""
    nothing_else = config is None and not pins and all(value is None for value in flags.values())
    with distributed.processes():
        if resume and nothing_else and out is not None:
            config = assembly.stored_config(out)
        front = _search(read_config(config, {**flags, "out": str(out) if out else None}, pins, settings), resume=resume)
        if distributed.rank() == 0:
            _tell_front(front)


def _search(config: RunConfig, *, resume: bool) -> Front:
    from ddq_search.search import search

    path = Path(config.out)
    with resumable("the same command with --resume goes on"):
        distributed.from_first(lambda: assembly.begin_run(path, config, resume=resume))
        with distributed.first_ahead():
            problem = assembly.assemble(config)
        with _held(path):
            record = distributed.from_first(lambda: assembly.begin_run(path, config, resume=resume))
            with progress_for(console) if distributed.rank() == 0 else nullcontext() as progress:
                return search(problem, record, progress)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds a run directory; a new one is removed where what happens inside is refused before anything is trained."""
    is_new = not path.exists()
    with locked(path):
        try:
            yield
        except DDQError:
            if is_new and distributed.rank() == 0 and not (path / "history.jsonl").exists():
                shutil.rmtree(path, ignore_errors=True)
            raise


QUICK = (
    "search.points=1", "search.relaxed_points=0", "search.extra_points=0", "search.uniform=[]",
    "search.solve_steps=60", "training.finetune_epochs=0",
)  # fmt: skip
"""Settings with which `solve` answers one budget with one policy, as the supernet has it."""


def solve(run: Path, flags: Mapping[str, Any], settings: list[str] | None, out: Path, *, resume: bool) -> None:
    """Solves other budgets or another device with the supernet of a finished run."""
    from ddq_search.solve import solve as solve_from
    from ddq_search.solve import within_trained

    with distributed.processes():
        with distributed.first_ahead():
            trained = assembly.open_run(run)
        config = solved_config(run, flags, settings, out)
        if not any(text.startswith("space.") for text in settings or ()):
            asked, config = config, within_trained(config, assembly.device_of(config), trained[0])
            if distributed.rank() == 0:
                _tell_pinned(config.space.pins, asked.space.pins)
        with resumable("the same command with --resume goes on"), _held(out):
            record = distributed.from_first(lambda: assembly.begin_run(out, config, resume=resume))
            with progress_for(console) if distributed.rank() == 0 else nullcontext() as progress:
                front = solve_from(assembly.posed_again(trained[0], config), record, trained, progress)
        if distributed.rank() == 0:
            _tell_front(front)


def solved_config(run: Path, flags: Mapping[str, Any], settings: list[str] | None, out: Path) -> RunConfig:
    """Returns the configuration of a run with another device or other budgets; new budgets replace all of the old.

    Raises:
        ConfigError: neither is given.
    """
    given = [key for key, value in flags.items() if value is not None] + [
        text.partition("=")[0] for text in settings or ()
    ]
    if not given:
        raise ConfigError("nothing to solve: give another --device, or a budget such as --latency or --flash")
    config = read_config(assembly.stored_config(run), {**flags, "out": str(out)}, None, settings)
    budgets = {key.partition(".")[2] for key in given if key.startswith("budgets.")}
    if not budgets:
        return config
    kept = {name: value for name, value in config.budgets if name in budgets}
    return config.model_copy(update={"budgets": BudgetConfig(**kept)})


def _tell_pinned(pins: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    by_bits: dict[str, list[str]] = {}
    for name, bits in pins.items():
        if asked.get(name) != bits:
            by_bits.setdefault(" or ".join(map(str, bits)), []).append(name)
    for shown, names in by_bits.items():
        tell(f"only at {shown} bits, as trained: {some(names, 3)}")


def _tell_front(front: Front) -> None:
    document = front.document()
    console.print(front_table(document))
    best = front.point("best")
    delta = best.validation.score - front.float_validation.score
    problem = front.problem
    latency = price_text(LATENCY, best.price[LATENCY], document["reference"], problem.device.calibration)
    tell(
        f"best: {front.best}, validation {best.validation.score:.2f} {problem.task.unit} ({delta:+.2f} against "
        f"float32 of equal epochs), latency {latency}"
    )
    tell_trust(problem)


def report(run: Path) -> None:
    """Writes the report of a run."""
    from reports.page import build_report

    with writing(run / "report.html"):
        tell(f"report: {build_report(run)}")


def compare(runs: list[Path], out: Path) -> None:
    """Writes the comparison of several runs."""
    from reports.compare import build_comparison

    with writing(out):
        tell(f"comparison: {build_comparison(runs, out)}")


def demo(out: Path) -> None:
    """The main job on embedded data, from where it stopped."""
    config = load_config(None, {**DEMO, "out": str(out)})
    if (out / "front.json").exists():
        tell(f"{out} holds a finished demo; going on with it (remove it to start over)")
    front = _search(config, resume=True)
    _tell_front(front)
    record = RunDirectory(out, front.problem.fingerprint)
    export_formats(front.problem, record, "best", {"onnx", "c"})
    exact = verify_export(front.problem, record, front.best, 256)
    report(out)
    if not exact:
        raise VerificationError("the export does not compute what was searched")
