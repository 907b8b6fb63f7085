"""The commands that make something: search, solve, report, compare, export, verify, demo."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ddq_search import distributed
from ddq_search.cli import assembly
from ddq_search.cli.lookups import tell_trust
from ddq_search.cli.output import console, resumable, tell, writing
from ddq_search.cli.progress import progress_for
from ddq_search.cli.settings import read_config
from ddq_search.cli.tables import front_table, price_text
from ddq_search.config import BudgetConfig, RunConfig, load_config
from ddq_search.cost import LATENCY
from ddq_search.discrete import DiscreteNetwork
from ddq_search.errors import ConfigError, DDQError, RunError, VerificationError, some
from ddq_search.export.c.proof import CReport
from ddq_search.export.litert_runtime import LiteRtReport
from ddq_search.export.onnx_runtime import OnnxReport
from ddq_search.judgement import Front
from ddq_search.problem import Problem
from ddq_search.record import RunDirectory, locked
from ddq_search.task import Classification

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


FORMATS = ("onnx", "tflite", "c", "program")
"""What can be exported; every export holds the integer program."""
RUNTIME_FORMATS = {
    "ddq-c": "c", "cmsis-nn": "tflite", "litert": "tflite", "xnnpack": "tflite", "ncnn": "onnx",
}  # fmt: skip
"""Runtime that was priced → the format that it reads: what is exported unless something else is asked for."""


def export(run: Path, policy: str, format_: str | None) -> None:
    """Exports a policy in one format, several (``onnx,c``), all, or the one that the priced runtime reads."""
    wanted = set(FORMATS) if format_ == "all" else {part.strip() for part in (format_ or "").split(",") if part.strip()}
    if wanted - set(FORMATS):
        raise ConfigError(f"unknown format {min(wanted - set(FORMATS))!r}; available: {', '.join(FORMATS)}, all")
    problem, record = assembly.open_run(run)
    _export(problem, record, policy, wanted or {priced_format(problem)})


def priced_format(problem: Problem) -> str:
    """Returns the format that the runtime reads for which a problem is priced; ONNX where that is not known."""
    profile = getattr(problem.device, "profile", None)
    return RUNTIME_FORMATS.get(getattr(profile, "runtime_key", ""), "onnx")


def _export(problem: Problem, record: RunDirectory, wanted: str, formats: set[str]) -> None:
    from ddq_search.export.onnx import export_onnx
    from ddq_search.integer.lowering import lower
    from ddq_search.integer.serialize import save_program

    policy, net, trained = assembly.open_policy(problem, record, wanted)
    program = lower(net.discretize(policy.bits), problem.device.arithmetic)
    folder = record.path / "export" / policy.name
    save_program(program, folder)
    record.write_text(f"export/{policy.name}/policy.json", policy.to_json())
    if "onnx" in formats:
        export_onnx(program, folder / "model.onnx")
    else:
        (folder / "model.onnx").unlink(missing_ok=True)  # of an earlier export
    if "tflite" in formats:
        _export_tflite(net.discretize(policy.bits), folder / "model.tflite", program.arithmetic)
    else:
        (folder / "model.tflite").unlink(missing_ok=True)
    if "c" in formats:
        from ddq_search.cli.c_project import export_c

        project, notes = export_c(problem, program, policy, folder / "c")
        tell(f"C project in {project.folder}: constants {project.constants_bytes}, arena {project.arena_bytes} bytes")
        for line in notes:
            tell(f"  {line}")
    else:
        shutil.rmtree(folder / "c", ignore_errors=True)  # of an earlier export
    price = problem.pricing.price(policy.bits)
    tell(
        f"exported {policy.name} ({trained}) to {folder}: program.bin {(folder / 'program.bin').stat().st_size} bytes, "
        f"priced {price['flash_bytes']:.0f}; arithmetic {problem.device.arithmetic}"
    )


def _export_tflite(network: DiscreteNetwork, path: Path, arithmetic: str) -> None:
    """Writes a TFLite file and says what its runtime does otherwise than searched."""
    from ddq_search.export.tflite import ARITHMETIC, export_tflite, flat_model
    from ddq_search.export.tflite_size import flat_bytes
    from ddq_search.export.tflite_weights import weight_containers
    from ddq_search.integer.lowering import lower

    lowered = lower(network, ARITHMETIC)
    export_tflite(lowered, path)
    tell(f"{path.name}: {path.stat().st_size} bytes, its layout priced at {flat_bytes(flat_model(lowered)[0])}")
    if arithmetic != ARITHMETIC:
        tell(f"  executes the arithmetic {ARITHMETIC}, the policy was searched in {arithmetic}; verify compares both")
    wider: dict[str, list[str]] = {}
    for layer, container in weight_containers(lowered).items():
        wider.setdefault(f"int{container.bits}: {container.reason}" if container.reason else "", []).append(layer)
    for reason, layers in wider.items():
        if reason:
            tell(f"  weights of {', '.join(layers)} carried as {reason}")


def verify(run: Path, policy: str | None, samples: int) -> None:
    """Verifies one export of a run, or all."""
    problem, record = assembly.open_run(run)
    root = run / "export"
    if policy is not None:
        names = [assembly.front_document(record)["best"] if policy == "best" else policy]
    else:
        names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.exists() else []
    if not names:
        raise VerificationError(f"{root} holds no export; `ddq-search export {run}` makes one")
    failed = []
    for name in names:
        try:
            passed = _verify(problem, record, name, samples)
        except (VerificationError, RunError) as error:
            if len(names) == 1:
                raise
            tell(f"verify: {name} FAILED: {error}")
            passed = False
        if not passed:
            failed.append(name)
    if failed:
        raise VerificationError(
            f"{', '.join(failed)} in {root}: what was exported does not compute what was searched, or cannot be "
            "checked; see above and verification.json"
        )


def _verify(problem: Problem, record: RunDirectory, name: str, samples: int) -> bool:
    from ddq_search.verify import verify_program

    folder = record.path / "export" / name
    stored = folder / "policy.json"
    if not stored.exists():
        raise VerificationError(
            f"{folder} holds no export; `ddq-search export {record.path} --policy {name}` makes one"
        )
    policy, net, _ = assembly.open_policy(problem, record, str(stored))
    images = assembly.sample_images(problem, samples)
    flash = round(problem.pricing.price(policy.bits)["flash_bytes"])
    result = verify_program(net.discretize(policy.bits), folder, images.numpy(), priced_flash_bytes=flash)
    codes = sum(comparison.codes for comparison in result.tensors.values())
    state = "bit-exact" if result.bit_exact else "NOT bit-exact"
    tell(f"verify: {state} over {len(result.tensors)} tensors, {codes:,} codes, {result.samples} samples ({name})")
    scores = isinstance(problem.task, Classification)
    tell(
        f"  onnx: {_onnx_line(result.onnx, scores)}"
        if result.onnx is not None
        else f"  onnx not run: {result.onnx_note}"
    )
    tell(
        f"  tflite: {_tflite_line(result.tflite, scores)}"
        if result.tflite
        else f"  tflite not run: {result.tflite_note}"
    )
    tell(f"  C: {_c_line(result.c)}" if result.c is not None else f"  C not run: {result.c_note}")
    for line in result.problems():
        tell(f"  {line}")
    return result.passed


def _c_line(c: CReport) -> str:
    ran = [f"the host ({c.samples} samples, {c.sanitized_samples} with sanitizers)"]
    ran += [f"{name} ({result.samples})" for name, result in c.targets.items() if not result.note]
    not_run = [f"; {name} {result.note}" for name, result in c.targets.items() if result.note]
    verdict = "bit-exact" if c.passed else "FAILED"
    return f"{verdict} on {', '.join(ran)}{''.join(not_run)}"


def _tflite_line(tflite: LiteRtReport, scores: bool) -> str:
    exact = sum(not comparison.differing for comparison in tflite.operators.values())
    return (
        f"{exact} of {len(tflite.operators)} operators and the output ({tflite.end_to_end}) exact in "
        f"{tflite.runtime} ({'passed' if tflite.passed else 'FAILED'}); against the program "
        + (f"{100 * tflite.program_top1_agreement:.2f} % same top-1" if scores else f"{tflite.program_end_to_end}")
    )


def _onnx_line(onnx: OnnxReport, scores: bool) -> str:
    worst = max(onnx.operators.values(), key=lambda c: (c.differing / max(c.codes, 1), c.largest_delta))
    return (
        f"{len(onnx.operators)} operators on reference inputs, in the worst {worst} "
        f"({'passed' if onnx.passed else 'FAILED'}); end to end "
        + (f"{100 * onnx.program_top1_agreement:.2f} % same top-1" if scores else f"{onnx.program_end_to_end}")
    )


def demo(out: Path) -> None:
    """The main job on embedded data, from where it stopped."""
    config = load_config(None, {**DEMO, "out": str(out)})
    if (out / "front.json").exists():
        tell(f"{out} holds a finished demo; going on with it (remove it to start over)")
    front = _search(config, resume=True)
    _tell_front(front)
    record = RunDirectory(out, front.problem.fingerprint)
    _export(front.problem, record, "best", {"onnx", "c"})
    exact = _verify(front.problem, record, front.best, 256)
    report(out)
    if not exact:
        raise VerificationError("the export does not compute what was searched")
