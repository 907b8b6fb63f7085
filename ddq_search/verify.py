"""The proof of an export: what the files compute is what was searched.

1. The network is lowered again in memory and evaluated in torch; the exported program is loaded from its files and run
   by the NumPy reference executor. Every code of every tensor must be equal.
2. An ONNX file beside them runs in onnxruntime: every operator on the reference's codes (at most one code apart, in at
   most 1 of 1,000 codes), then the whole file, whose agreement is reported. ONNX rounds once, so its reference is the
   network in the arithmetic ``single``; its agreement with a program of another arithmetic is reported beside.
3. A TFLite file beside them must be, byte for byte, what the network exports to in the arithmetic ``tflite``; where
   LiteRT is installed, its reference kernels must give every code of every operator and tensor.
4. A C project beside them is compiled and run: every code of every tensor on this machine, digests on emulated ones.
5. File sizes are measured, and compared with the price where it is given.

Shapes: images ``[N, C, H, W]`` float, or their uint8 codes on the input grid.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ddq_search.discrete import DiscreteNetwork
from ddq_search.errors import ExportError, VerificationError
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.export.c.proof import EMULATED, CComparison, CReport
from ddq_search.export.c.targets import TARGETS, missing
from ddq_search.export.litert_runtime import LiteRtComparison, LiteRtReport, load_litert, read_exported
from ddq_search.export.onnx import ARITHMETIC
from ddq_search.export.onnx_runtime import Comparison, OnnxComparison, OnnxReport
from ddq_search.export.tflite import ARITHMETIC as TFLITE_ARITHMETIC
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower, quantize_input
from ddq_search.integer.program import IntegerProgram
from ddq_search.integer.serialize import CONSTANTS_FILE, STRUCTURE_FILE, encode, load_program
from ddq_search.whole_files import write_whole

ONNX_FILE, TFLITE_FILE, C_FOLDER, REPORT_FILE = "model.onnx", "model.tflite", "c", "verification.json"
CHUNK = 32
"""Samples compared at a time."""


@dataclass(frozen=True)
class VerificationReport:
    """The outcome of `verify_program`.

    Attributes:
        samples: how many inputs were compared.
        arithmetic: the program's arithmetic.
        policy_sha256: digest of its policy.
        tensors: tensor → comparison of evaluation mode with the executor.
        same_program: whether the files hold the very program that the network lowers to.
        onnx: the ONNX part, None where it was not run.
        onnx_note: why it was not run.
        file_bytes: file name → size.
        priced_flash_bytes: what the cost model asked for the constants, None where not given.
        seconds: how long it took.
        c: the C part, None where it was not run.
        c_note: why it was not run.
        tflite: the TFLite part, None where it was not run.
        tflite_note: why it was not run.
    """

    samples: int
    arithmetic: str
    policy_sha256: str
    tensors: Mapping[str, Comparison]
    same_program: bool
    onnx: OnnxReport | None
    onnx_note: str
    file_bytes: Mapping[str, int]
    priced_flash_bytes: int | None
    seconds: float
    c: CReport | None = None
    c_note: str = ""
    tflite: LiteRtReport | None = None
    tflite_note: str = ""

    @property
    def bit_exact(self) -> bool:
        """Whether every code of every tensor is equal."""
        return self.same_program and all(comparison.differing == 0 for comparison in self.tensors.values())

    @property
    def flash_as_priced(self) -> bool:
        """Whether the constants take the bytes that were priced (true where no price was given)."""
        sizes = {self.file_bytes[CONSTANTS_FILE], *([] if self.c is None else [self.c.constants_bytes])}
        return self.priced_flash_bytes is None or sizes == {self.priced_flash_bytes}

    @property
    def passed(self) -> bool:
        """Whether everything that was checked holds."""
        parts = (self.onnx, self.tflite, self.c)
        return self.bit_exact and self.flash_as_priced and all(part is None or part.passed for part in parts)

    def problems(self) -> list[str]:
        """Returns one line per thing that does not hold."""
        lines = [
            f"tensor {name!r}: {c.differing} of {c.codes} codes differ, by up to {c.largest_delta}"
            for name, c in self.tensors.items()
            if c.differing
        ]
        if not self.same_program:
            lines.append(
                f"{CONSTANTS_FILE} and {STRUCTURE_FILE} hold another program than this network's; export again"
            )
        if not self.flash_as_priced:
            lines.append(
                f"{CONSTANTS_FILE} has {self.file_bytes[CONSTANTS_FILE]} bytes, priced {self.priced_flash_bytes}"
                + ("" if self.c is None else f"; constants of the compiled C project {self.c.constants_bytes}")
            )
        lines += [] if self.c is None else self.c.problems()
        lines += [] if self.tflite is None else self.tflite.problems(TFLITE_FILE)
        for name, c in (self.onnx.operators if self.onnx else {}).items():
            if not c.within_onnx_bar:
                lines.append(
                    f"{ONNX_FILE}, {name!r}: {c.differing} of {c.codes} codes differ, by up to {c.largest_delta}"
                )
        return lines

    def to_json(self) -> str:
        """Returns the report as JSON, the verdicts spelt out."""
        facts = asdict(self)
        facts |= {"passed": self.passed, "bit_exact": self.bit_exact, "flash_as_priced": self.flash_as_priced}
        if self.onnx is not None:
            facts["onnx"]["passed"] = self.onnx.passed
        if self.tflite is not None:
            facts["tflite"] |= {"passed": self.tflite.passed, "size_as_priced": self.tflite.size_as_priced}
        if self.c is not None:
            facts["c"]["passed"] = self.c.passed
        return json.dumps({"format": "ddq-search verification", "version": 1, **facts}, indent=1, ensure_ascii=False)


def verify_program(
    network: DiscreteNetwork,
    folder: Path,
    images: NDArray[Any],
    *,
    priced_flash_bytes: int | None = None,
    strict: bool = False,
    emulated: Mapping[str, int] = EMULATED,
    objects: Path | None = None,
) -> VerificationReport:
    """Returns the proof for the program exported to ``folder`` and writes it there as ``verification.json``.

    Args:
        network: the searched network.
        folder: holds ``program.json``, ``program.bin`` and, if exported, ``model.onnx``, ``model.tflite`` and the C
            project ``c``.
        images: ``[N, ...]`` real inputs, or their uint8 codes; N ≥ 1.
        priced_flash_bytes: the policy's flash price, to compare with the size of the constants.
        strict: whether a failure raises.
        emulated: emulated target of the C project → samples it runs at most.
        objects: folder that keeps compiled C kernels for further verifications.

    Raises:
        VerificationError: the files are damaged or belong to another network, or ``strict`` and a check failed.
        ExportError: the report cannot be written.
    """
    started = time.monotonic()
    program = load_program(folder)
    expected = lower(network, program.arithmetic)
    if program.tensors.keys() != expected.tensors.keys():
        raise VerificationError(f"{folder} holds a program of another network: their tensors differ in name")
    if len(images) < 1:
        raise VerificationError("verification needs at least one image")
    codes = quantize_input(images, expected.input.grid) if images.dtype.kind == "f" else images
    evaluator = IntegerEvaluator(expected)
    model, note = _open_onnx(folder / ONNX_FILE, program, network)
    tflite, tflite_note = _open_tflite(folder / TFLITE_FILE, program, network)
    tensors = {name: Comparison() for name in expected.tensors}
    c_project, c_note = _open_c(folder / C_FOLDER, program, emulated, objects)
    with c_project or nullcontext():
        for start in range(0, len(codes), CHUNK):
            part = codes[start : start + CHUNK]
            evaluated = evaluator.run(part)
            reference = executor.run(program, part)
            for name, comparison in tensors.items():
                comparison.add(evaluated[name].cpu().numpy(), reference[name])
            for file in (model, tflite):
                if file is not None:
                    file.compare(part, reference)
            if c_project is not None:
                c_project.compare(part, reference)
        c_report = c_project.report() if c_project is not None else None
    report = VerificationReport(
        samples=len(codes),
        arithmetic=program.arithmetic,
        policy_sha256=program.policy_sha256,
        tensors=tensors,
        same_program=encode(program) == encode(expected),
        onnx=model.report() if model is not None else None,
        onnx_note=note,
        file_bytes={
            path.name: path.stat().st_size
            for path in (folder / name for name in (STRUCTURE_FILE, CONSTANTS_FILE, ONNX_FILE, TFLITE_FILE))
            if path.exists()
        },
        priced_flash_bytes=priced_flash_bytes,
        seconds=time.monotonic() - started,
        c=c_report,
        c_note=c_note,
        tflite=tflite.report() if tflite is not None else None,
        tflite_note=tflite_note,
    )
    try:
        write_whole(folder / REPORT_FILE, report.to_json().encode())
    except OSError as error:
        raise ExportError(f"cannot write {folder / REPORT_FILE}: {error.strerror or error}") from error
    if strict and not report.passed:
        raise VerificationError(f"{folder} does not compute what was searched:\n" + "\n".join(report.problems()))
    return report


def _open_c(
    folder: Path, program: IntegerProgram, emulated: Mapping[str, int], objects: Path | None
) -> tuple[CComparison | None, str]:
    if not folder.exists():
        return None, f"no folder {folder.name} with a C project"
    gap = missing(TARGETS["host"])
    return (None, f"could not run: {gap}") if gap else (CComparison(folder, program, emulated, objects), "")


def _open_onnx(path: Path, program: IntegerProgram, network: DiscreteNetwork) -> tuple[OnnxComparison | None, str]:
    if not path.exists():
        return None, f"no {path.name} in the folder"
    try:
        return OnnxComparison(path, program, lower(network, ARITHMETIC)), ""
    except ExportError as error:
        return None, str(error)


def _open_tflite(path: Path, program: IntegerProgram, network: DiscreteNetwork) -> tuple[LiteRtComparison | None, str]:
    if not path.exists():
        return None, f"no {path.name} in the folder"
    lowered = lower(network, TFLITE_ARITHMETIC)
    read_exported(path, lowered)
    try:
        load_litert()
    except ExportError as error:
        return None, f"{path.name} is what the network exports to, but was not run: {error}"
    return LiteRtComparison(path, program, lowered), ""
