"""The proof of an export: what the files compute is what was searched.

1. The network is lowered again in memory and evaluated in torch; the exported program is loaded from its files and run
   by the NumPy reference executor. Every code of every tensor must be equal.
2. An ONNX file beside them runs in onnxruntime: every operator on the reference's codes (at most one code apart, in at
   most 1 of 1,000 codes), then the whole file, whose agreement is reported. ONNX rounds once, so its reference is the
   network in the arithmetic ``single``; its agreement with a program of another arithmetic is reported beside.
3. File sizes are measured, and compared with the price where it is given.

Shapes: images ``[N, C, H, W]`` float, or their uint8 codes on the input grid.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.discrete import DiscreteNetwork
from ddq_search.errors import ExportError, VerificationError
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.export.onnx import ARITHMETIC, CODES, load_onnx
from ddq_search.integer import executor
from ddq_search.integer.lowering import dequantize, lower, quantize_input
from ddq_search.integer.program import IntegerProgram
from ddq_search.integer.serialize import CONSTANTS_FILE, STRUCTURE_FILE, encode, load_program, write_whole

ONNX_FILE, REPORT_FILE = "model.onnx", "verification.json"
ONNX_LARGEST_DELTA = 1
ONNX_DIFFERING_SHARE = 1 / 1000
CHUNK = 32
"""Samples compared at a time."""

Codes = Mapping[str, NDArray[np.uint8]]


@dataclass
class Comparison:
    """How one tensor's codes differ between two executions."""

    codes: int = 0
    differing: int = 0
    largest_delta: int = 0

    def add(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
        """Counts one more part of the tensor; raises `VerificationError` where the shapes differ."""
        if first.shape != second.shape:
            raise VerificationError(f"shapes {first.shape} and {second.shape} cannot be compared")
        delta = np.abs(first.astype(np.int16) - second.astype(np.int16))
        self.codes += delta.size
        self.differing += int(np.count_nonzero(delta))
        self.largest_delta = max(self.largest_delta, int(delta.max(initial=0)))

    @property
    def within_onnx_bar(self) -> bool:
        """Whether an operator of the ONNX file is close enough to the reference."""
        return self.largest_delta <= ONNX_LARGEST_DELTA and self.differing <= ONNX_DIFFERING_SHARE * self.codes


@dataclass(frozen=True)
class OnnxReport:
    """What onnxruntime made of the ONNX file.

    Attributes:
        runtime: name and version.
        arithmetic: what the file stands for.
        operators: operator → comparison with the executor in that arithmetic, on its inputs, graph optimizations off.
        end_to_end: comparison of the output codes, whole file with onnxruntime's default optimizations.
        top1_agreement: share of samples (and positions) whose largest output is the same channel.
        program_end_to_end: as ``end_to_end``, with the exported program in its own arithmetic.
        program_top1_agreement: as ``top1_agreement``, likewise.
    """

    runtime: str
    arithmetic: str
    operators: Mapping[str, Comparison]
    end_to_end: Comparison
    top1_agreement: float
    program_end_to_end: Comparison
    program_top1_agreement: float

    @property
    def passed(self) -> bool:
        """Whether every operator meets the bar."""
        return all(comparison.within_onnx_bar for comparison in self.operators.values())


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

    @property
    def bit_exact(self) -> bool:
        """Whether every code of every tensor is equal."""
        return self.same_program and all(comparison.differing == 0 for comparison in self.tensors.values())

    @property
    def flash_as_priced(self) -> bool:
        """Whether the constants take the bytes that were priced (true where no price was given)."""
        return self.priced_flash_bytes in (None, self.file_bytes[CONSTANTS_FILE])

    @property
    def passed(self) -> bool:
        """Whether everything that was checked holds."""
        return self.bit_exact and self.flash_as_priced and (self.onnx is None or self.onnx.passed)

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
            )
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
        return json.dumps({"format": "ddq-search verification", "version": 1, **facts}, indent=1, ensure_ascii=False)


def verify_program(
    network: DiscreteNetwork,
    folder: Path,
    images: NDArray[Any],
    *,
    priced_flash_bytes: int | None = None,
    strict: bool = False,
) -> VerificationReport:
    """Returns the proof for the program exported to ``folder`` and writes it there as ``verification.json``.

    Args:
        network: the searched network.
        folder: holds ``program.json``, ``program.bin`` and, if exported, ``model.onnx``.
        images: ``[N, ...]`` real inputs, or their uint8 codes; N ≥ 1.
        priced_flash_bytes: the policy's flash price, to compare with the size of the constants.
        strict: whether a failure raises.

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
    tensors = {name: Comparison() for name in expected.tensors}
    for start in range(0, len(codes), CHUNK):
        part = codes[start : start + CHUNK]
        evaluated = evaluator.run(part)
        reference = executor.run(program, part)
        for name, comparison in tensors.items():
            comparison.add(evaluated[name].cpu().numpy(), reference[name])
        if model is not None:
            model.compare(part, reference)
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
            for path in (folder / name for name in (STRUCTURE_FILE, CONSTANTS_FILE, ONNX_FILE))
            if path.exists()
        },
        priced_flash_bytes=priced_flash_bytes,
        seconds=time.monotonic() - started,
    )
    try:
        write_whole(folder / REPORT_FILE, report.to_json().encode())
    except OSError as error:
        raise ExportError(f"cannot write {folder / REPORT_FILE}: {error.strerror or error}") from error
    if strict and not report.passed:
        raise VerificationError(f"{folder} does not compute what was searched:\n" + "\n".join(report.problems()))
    return report


def _open_onnx(path: Path, program: IntegerProgram, network: DiscreteNetwork) -> tuple[_OnnxModel | None, str]:
    if not path.exists():
        return None, f"no {path.name} in the folder"
    try:
        onnx, runtime = load_onnx("onnx"), load_onnx("onnxruntime")
    except ExportError as error:
        return None, str(error)
    return _OnnxModel(path, program, lower(network, ARITHMETIC), onnx, runtime), ""


class _OnnxModel:
    """An exported ONNX file in onnxruntime, whole and cut at every code tensor."""

    def __init__(self, path: Path, program: IntegerProgram, once: IntegerProgram, onnx: Any, runtime: Any) -> None:
        self.once = once
        self.same_arithmetic = program.arithmetic == once.arithmetic
        self.runtime = runtime
        self.operators = {step.name: Comparison() for step in once.steps}
        self.outputs = (Comparison(), Comparison())
        self.same_top1: tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]] = ([], [])
        try:
            model = onnx.load(path)
            stated = {entry.key: entry.value for entry in model.metadata_props}
            if (stated.get("arithmetic"), stated.get("policy_sha256")) != (once.arithmetic, once.policy_sha256):
                raise VerificationError(f"{path} was exported from another policy; export it again")
            self.whole = self._session(model, optimized=True)
            self.cut = self._session(_cut_at_codes(model, once, onnx), optimized=False)
        except VerificationError:
            raise
        except Exception as error:  # protobuf and onnxruntime raise their own
            raise VerificationError(f"{path} does not load in onnxruntime: {_first_line(error)}") from error

    def compare(self, codes: NDArray[np.integer[Any]], executed: Codes) -> None:
        """Runs both forms on input codes and counts the differences; ``executed`` is what the exported program gave."""
        reference = executed if self.same_arithmetic else executor.run(self.once, codes)
        images = dequantize(codes, self.once.input.grid)
        fed = {"input": images, **{name + CODES: value for name, value in reference.items()}}
        read = {entry.name for entry in self.cut.get_inputs()}
        found = self.cut.run([name + _COMPUTED for name in self.operators], {n: v for n, v in fed.items() if n in read})
        for (name, comparison), value in zip(self.operators.items(), found, strict=True):
            comparison.add(value, reference[name])
        output, grid = self.whole.run(["output"], {"input": images})[0], self.once.output.grid
        for comparison, same, tensors in zip(self.outputs, self.same_top1, (reference, executed), strict=True):
            expected = tensors[self.once.output.name]
            comparison.add(quantize_input(output, grid), expected)
            same.append((output.argmax(1) == dequantize(expected, grid).argmax(1)).ravel())

    def report(self) -> OnnxReport:
        """What was counted so far."""
        shares = [float(np.concatenate(same).mean()) for same in self.same_top1]
        version = f"onnxruntime {self.runtime.__version__}"
        (once, program), (share, program_share) = self.outputs, shares
        return OnnxReport(version, self.once.arithmetic, self.operators, once, share, program, program_share)

    def _session(self, model: Any, *, optimized: bool) -> Any:
        options = self.runtime.SessionOptions()
        options.log_severity_level = 3
        if not optimized:
            options.graph_optimization_level = self.runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


_COMPUTED = "/computed"


def _cut_at_codes(model: Any, program: IntegerProgram, onnx: Any) -> Any:
    """Makes every code tensor a graph input, and what the file computes for it a graph output.

    So each operator of the file reads the reference's codes, never another operator's.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    helper, uint8 = onnx.helper, onnx.TensorProto.UINT8
    produced = {name + CODES: name for name in program.tensors}
    missing = produced.keys() - {output for node in cut.graph.node for output in node.output}
    if missing:
        raise VerificationError(f"the ONNX file has no tensor {sorted(missing)[0]!r}; export it again")
    for node in cut.graph.node:
        if node.output[0] in produced:
            node.output[0] = produced[node.output[0]] + _COMPUTED
    del cut.graph.output[:]
    read = {source for node in cut.graph.node for source in node.input}
    for codes, name in produced.items():
        shape = ["N", *program.tensors[name].shape]
        cut.graph.output.append(helper.make_tensor_value_info(name + _COMPUTED, uint8, shape))
        if codes in read:
            cut.graph.input.append(helper.make_tensor_value_info(codes, uint8, shape))
    _drop(cut.graph, "output")
    return cut


def _drop(graph: Any, tensor: str) -> None:
    """Removes the node that computes a tensor which is no longer asked for."""
    kept = [node for node in graph.node if node.output[0] != tensor]
    del graph.node[:]
    graph.node.extend(kept)
    read = {source for node in kept for source in node.input}
    inputs = [entry for entry in graph.input if entry.name in read]
    del graph.input[:]
    graph.input.extend(inputs)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
