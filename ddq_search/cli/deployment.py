"""The commands that deploy a run's policies: export, and verify, which proves what was exported."""

from __future__ import annotations

import shutil
from pathlib import Path

from ddq_search.cli import assembly
from ddq_search.cli.output import tell
from ddq_search.discrete import DiscreteNetwork
from ddq_search.errors import ConfigError, RunError, VerificationError
from ddq_search.export.c.proof import CReport
from ddq_search.export.litert_runtime import LiteRtReport
from ddq_search.export.onnx_runtime import OnnxReport
from ddq_search.problem import Problem
from ddq_search.record import RunDirectory
from ddq_search.task import Classification

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
    export_formats(problem, record, policy, wanted or {priced_format(problem)})


def priced_format(problem: Problem) -> str:
    """Returns the format that the runtime reads for which a problem is priced; ONNX where that is not known."""
    profile = getattr(problem.device, "profile", None)
    return RUNTIME_FORMATS.get(getattr(profile, "runtime_key", ""), "onnx")


def export_formats(problem: Problem, record: RunDirectory, wanted: str, formats: set[str]) -> None:
    """Exports a policy of an open run in these formats, and removes what earlier exports of it left in others."""
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
            passed = verify_export(problem, record, name, samples)
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


def verify_export(problem: Problem, record: RunDirectory, name: str, samples: int) -> bool:
    """Verifies an export of an open run, tells what was found, and returns whether all of it passed.

    Raises:
        VerificationError: there is no such export, or it cannot be read.
    """
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
