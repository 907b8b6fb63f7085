"""An exported ONNX file in onnxruntime, held against the reference executor.

ONNX rounds once, so its reference is the network in the arithmetic `ddq_search.export.onnx.ARITHMETIC`; the agreement
with a program of another arithmetic is counted beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import VerificationError
from ddq_search.export.onnx import CODES, load_onnx
from ddq_search.integer import executor
from ddq_search.integer.lowering import dequantize, quantize_input
from ddq_search.integer.program import IntegerProgram

LARGEST_DELTA = 1
DIFFERING_SHARE = 1 / 1000

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
        delta = np.abs(first.astype(np.int32) - second.astype(np.int32))
        self.codes += delta.size
        self.differing += int(np.count_nonzero(delta))
        self.largest_delta = max(self.largest_delta, int(delta.max(initial=0)))

    def __str__(self) -> str:
        return f"{self.differing} of {self.codes} codes differ, by up to {self.largest_delta}"

    @property
    def within_onnx_bar(self) -> bool:
        """Whether an operator of the ONNX file is close enough to the reference."""
        return self.largest_delta <= LARGEST_DELTA and self.differing <= DIFFERING_SHARE * self.codes


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


class OnnxComparison:
    """An exported ONNX file in onnxruntime, whole and cut at every code tensor.

    Args:
        path: the file.
        program: the exported program.
        once: the same network in the arithmetic of ONNX.

    Raises:
        ExportError: onnx or onnxruntime is not installed.
        VerificationError: the file does not load, or belongs to another policy.
    """

    def __init__(self, path: Path, program: IntegerProgram, once: IntegerProgram) -> None:
        onnx, runtime = load_onnx("onnx"), load_onnx("onnxruntime")
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
