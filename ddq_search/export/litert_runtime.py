"""An exported TFLite file in LiteRT with its reference kernels, held against the reference executor.

The file must be, byte for byte, what the network exports to. Then it runs whole, every tensor compared, and operator
by operator: each step of the program as a model of its own, reading the reference's codes. Every operator that the
exporter writes is exact in the reference kernels, so the bar is equality throughout; other kernels of the runtime
(XNNPACK) round once and are not what this arithmetic stands for.

Codes are compared as the program has them: unsigned, channels first.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.onnx_runtime import Comparison
from ddq_search.export.tflite import flat_model, tflite_bytes
from ddq_search.export.tflite_size import flat_bytes
from ddq_search.export.tflite_weights import Container, weight_containers
from ddq_search.integer import executor
from ddq_search.integer.lowering import dequantize
from ddq_search.integer.program import Input, IntegerProgram, Move, Step, Tensor

Codes = Mapping[str, NDArray[Any]]

PACKAGE = "ai-edge-litert"
SIZE_SHARE = 0.02
"""Largest distance of a file's size from its price; `SIZE_GAP_BYTES` where that is more (files below 3.2 kB)."""
SIZE_GAP_BYTES = 64


@dataclass(frozen=True)
class LiteRtReport:
    """What LiteRT made of the TFLite file.

    Attributes:
        runtime: name, version and kernels.
        arithmetic: what the file stands for.
        operators: step → comparison with the executor, on the executor's inputs.
        executed_by: step → the operators of the file that compute it.
        weights: layer → how its weights are carried, and why wider than searched.
        tensors: step → comparison with the executor, the whole file on its own intermediate codes.
        end_to_end: of the output.
        top1_agreement: share of samples (and positions) whose largest output is the same channel.
        program_end_to_end: as ``end_to_end``, with the exported program in its own arithmetic.
        program_top1_agreement: as ``top1_agreement``, likewise.
        file_bytes: size of the file.
        priced_bytes: price of the file.
    """

    runtime: str
    arithmetic: str
    operators: Mapping[str, Comparison]
    executed_by: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, Container]
    tensors: Mapping[str, Comparison]
    end_to_end: Comparison
    top1_agreement: float
    program_end_to_end: Comparison
    program_top1_agreement: float
    file_bytes: int
    priced_bytes: int

    @property
    def size_as_priced(self) -> bool:
        """Whether the file's size is within `SIZE_SHARE` of its price."""
        return abs(self.file_bytes - self.priced_bytes) <= max(SIZE_SHARE * self.priced_bytes, SIZE_GAP_BYTES)

    @property
    def passed(self) -> bool:
        """Whether every code of every operator and tensor is equal and the size is as priced."""
        comparisons = [*self.operators.values(), *self.tensors.values()]
        return self.size_as_priced and all(comparison.differing == 0 for comparison in comparisons)

    def problems(self, file: str) -> list[str]:
        """Returns one line per thing that does not hold, naming the file."""
        lines = [f"{file}, operator {name!r}: {c}" for name, c in self.operators.items() if c.differing]
        lines += [f"{file}, tensor {name!r}: {c}" for name, c in self.tensors.items() if c.differing]
        if not self.size_as_priced:
            lines.append(f"{file} has {self.file_bytes} bytes, priced {self.priced_bytes}")
        return lines


class LiteRtComparison:
    """An exported TFLite file in LiteRT, whole and operator by operator.

    Args:
        path: the file.
        program: the exported program.
        lowered: the same network in the arithmetic of TFLite.

    Raises:
        ExportError: LiteRT is not installed, or the network has no TFLite form.
        VerificationError: the file is not what the network exports to, or LiteRT refuses it.
    """

    def __init__(self, path: Path, program: IntegerProgram, lowered: IntegerProgram) -> None:
        self.runtime = load_litert()
        self.lowered = lowered
        self.same_arithmetic = program.arithmetic == lowered.arithmetic
        model, self.index = flat_model(lowered)
        data = read_exported(path, lowered)
        self.file_bytes, self.priced_bytes = len(data), flat_bytes(model)
        self.whole = _Runner(self.runtime, data, path.name, keep_all=True)
        self.alone: dict[str, tuple[_Runner, int]] = {}
        self.executed_by: dict[str, tuple[str, ...]] = {}
        for step in lowered.steps:
            if not isinstance(step, Input) and not (isinstance(step, Move) and step.kind == "output"):
                single = single_step(lowered, step)
                part, index = flat_model(single)
                runner = _Runner(self.runtime, tflite_bytes(single), f"{path.name}, {step.name!r}")
                self.alone[step.name] = (runner, index[step.name])
                self.executed_by[step.name] = tuple(operator.code for operator in part.operators)
        self.operators = {name: Comparison() for name in self.alone}
        self.tensors = {step.name: Comparison() for step in lowered.steps}
        self.program_output = Comparison()
        self.same_top1: tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]] = ([], [])

    def compare(self, codes: NDArray[np.integer[Any]], executed: Codes) -> None:
        """Runs both forms on input codes and counts the differences; ``executed`` is what the exported program gave."""
        reference = executed if self.same_arithmetic else executor.run(self.lowered, codes)
        steps = {step.name: step for step in self.lowered.steps}
        for name, (runner, index) in self.alone.items():
            sources = dict.fromkeys(steps[name].inputs)
            found = runner.run([reference[source] for source in sources], [index])[0]
            self.operators[name].add(found, reference[name])
        whole = self.whole.run([reference[self.lowered.input.name]], [self.index[name] for name in self.tensors])
        for (name, comparison), found in zip(self.tensors.items(), whole, strict=True):
            comparison.add(found, reference[name])
        output = self.lowered.output
        found = whole[list(self.tensors).index(output.name)]
        self.program_output.add(found, executed[output.name])
        for same, tensors in zip(self.same_top1, (reference, executed), strict=True):
            expected = dequantize(tensors[output.name], output.grid).argmax(1)
            same.append((found.argmax(1) == expected).ravel())

    def report(self) -> LiteRtReport:
        """What was counted so far."""
        share, program_share = (float(np.concatenate(same).mean()) for same in self.same_top1)
        return LiteRtReport(
            f"{PACKAGE} {version(PACKAGE)}, reference kernels", self.lowered.arithmetic, self.operators,
            self.executed_by, weight_containers(self.lowered), self.tensors, self.tensors[self.lowered.output.name],
            share, self.program_output, program_share, self.file_bytes, self.priced_bytes,
        )  # fmt: skip


def load_litert() -> Any:
    """Returns LiteRT's interpreter module; raises `ExportError` with the remedy where it is missing."""
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise ExportError(f"TFLite files run in {PACKAGE}: pip install 'ddq-search[litert]'") from error


def read_exported(path: Path, lowered: IntegerProgram) -> bytes:
    """Returns the bytes of a file that is what a program exports to.

    Raises:
        VerificationError: it is another policy's, edited, truncated, or cannot be read.
    """
    try:
        found = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"cannot read {path}: {error.strerror}; export the policy again") from error
    expected = tflite_bytes(lowered)
    if found == expected:
        return found
    if lowered.policy_sha256.encode() not in found:
        raise VerificationError(f"{path} was exported from another policy, or is damaged; export it again")
    if len(found) < len(expected) and expected.startswith(found):
        raise VerificationError(f"{path} is truncated: {len(found)} of {len(expected)} bytes; export it again")
    first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
    raise VerificationError(
        f"{path} is not what this network exports to: it differs from byte {first} on (edited, or written by another "
        "release of ddq-search or flatbuffers); export it again"
    )


def single_step(program: IntegerProgram, step: Step) -> IntegerProgram:
    """Returns the program of one step whose inputs are the network's."""
    sources = tuple(dict.fromkeys(step.inputs))
    end = f"{step.name}/output"
    while end in (step.name, *sources):
        end += "/output"
    made = program.tensors[step.name]
    tensors = {name: program.tensors[name] for name in (*sources, step.name)}
    tensors[end] = Tensor(end, made.shape, made.grid)
    steps = (*(Input(name, ()) for name in sources), step, Move(end, (step.name,), "output"))
    return IntegerProgram(program.arithmetic, tensors, steps, program.policy)


class _Runner:
    """One model in the interpreter, its batch resized as needed."""

    def __init__(self, runtime: Any, data: bytes, name: str, *, keep_all: bool = False) -> None:
        self.name = name
        self.batch = -1
        try:
            self.interpreter = runtime.Interpreter(
                model_content=data,
                experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_REF,
                experimental_preserve_all_tensors=keep_all,
                num_threads=1,
            )
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"{name} does not load in LiteRT: {_first_line(error)}") from error
        self.inputs = [entry["index"] for entry in self.interpreter.get_input_details()]

    def run(self, inputs: list[NDArray[Any]], wanted: list[int]) -> list[NDArray[Any]]:
        """Returns tensors by index as the program has them."""
        given = [_to_file(codes) for codes in inputs]
        try:
            if self.batch != len(given[0]):
                self.batch = len(given[0])
                for index, codes in zip(self.inputs, given, strict=True):
                    self.interpreter.resize_tensor_input(index, codes.shape)
                self.interpreter.allocate_tensors()
            for index, codes in zip(self.inputs, given, strict=True):
                self.interpreter.set_tensor(index, codes)
            self.interpreter.invoke()
            return [_from_file(self.interpreter.get_tensor(index)) for index in wanted]
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"{self.name} does not run in LiteRT: {_first_line(error)}") from error


def _to_file(codes: NDArray[Any]) -> NDArray[Any]:
    ordered = codes.transpose(0, 2, 3, 1) if codes.ndim == 4 else codes
    signed, zero = (np.int16, 2**15) if codes.dtype == np.uint16 else (np.int8, 2**7)
    return np.ascontiguousarray((ordered.astype(np.int32) - zero).astype(signed))


def _from_file(codes: NDArray[Any]) -> NDArray[Any]:
    ordered = codes.transpose(0, 3, 1, 2) if codes.ndim == 4 else codes
    unsigned, zero = (np.uint16, 2**15) if codes.dtype == np.int16 else (np.uint8, 2**7)
    return np.asarray(ordered.astype(np.int32) + zero, unsigned)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
