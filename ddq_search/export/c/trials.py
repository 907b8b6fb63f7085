"""Runs kernels on random layers on a target, checks every output code against NumPy, and counts instructions.

    trial = Trial(kernel, shape, weight_bits=4)
    runner = Runner(TARGETS["cortex-m4"], kernels, directory, count=True)
    counts = runner.run([trial, …])          # raises VerificationError at the first wrong code

The NumPy side is int64, one tap at a time, straight from the definition in `runtime/ddq_kernels.h`; it shares nothing
with the kernels but the requantization of the reference executor. Layers are drawn so that their outputs spread over
the output grid.
"""

from __future__ import annotations

import math
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.targets import OPTIMISATION, RUNTIME, Target, build, run
from ddq_search.integer.executor import requantize
from ddq_search.integer.program import Rounding
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import activation_bytes, pack_rows, row_bytes, unpack_rows
from ddq_search.precision import activation_code_range, weight_code_range

BOARDS = RUNTIME / "boards"
SANITIZERS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DDDQ_TRIAL_GUARD=0")
"""Flags of a host build that stops at the first byte too far or undefined operation."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """One random layer for one kernel.

    Attributes:
        kernel: what executes it.
        shape: geometry.
        weight_bits: storage width of weights: 2, 4 or 8.
        input_bits: storage width of inputs.
        output_bits: storage width of outputs.
        rounding: of the requantization.
        clamped: whether ``low`` and ``high`` cut the output grid, as activation functions do.
        raised: added to the shifts, so that multipliers at and above one occur.
        large_bias: whether biases, and so accumulators, spread over all of int32 that the products leave.
        seed: of the layer's constants and input.
    """

    kernel: Kernel
    shape: LayerShape
    weight_bits: int = 8
    input_bits: int = 8
    output_bits: int = 8
    rounding: Rounding = "double"
    clamped: bool = False
    raised: int = 0
    large_bias: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Layer:
    """The constants and the input of a trial. ``bias`` is the program's: nothing folded in.

    Kernels of multipoint weights get one further point of the same width: ``point`` codes, times ``ratio`` per channel.
    """

    trial: Trial
    codes: NDArray[np.int8]
    codebook: NDArray[np.int8] | None
    point: NDArray[np.int8] | None
    ratio: Integers
    bias: Integers
    multiplier: Integers
    shift: Integers
    x: NDArray[np.uint8]
    in_zero: int
    out_zero: int
    low: int
    high: int

    @property
    def weights(self) -> Integers:
        """The integer weights ``[out_c, K]``."""
        if self.point is not None:
            return np.asarray(self.codes.astype(np.int64) + self.point * self.ratio[:, None])
        if self.codebook is None:
            return self.codes.astype(np.int64)
        levels: Integers = self.codebook.astype(np.int64)
        return np.asarray(levels[self.codes.astype(np.int64) & (len(levels) - 1)])


def draw(trial: Trial) -> Layer:
    """Returns a random layer of the trial's shape and widths."""
    shape, rng = trial.shape, np.random.default_rng(trial.seed)
    rows, length = shape.output[2], shape.row_length
    low, high = weight_code_range(trial.weight_bits)
    codebook = None
    if trial.kernel.codebook:
        levels = 1 << trial.weight_bits
        codebook = rng.integers(-127, 128, levels).astype(np.int8)
        codes = rng.integers(-(levels // 2), levels // 2, (rows, length)).astype(np.int8)
    else:
        codes = rng.integers(low, high + 1, (rows, length)).astype(np.int8)
    point = rng.integers(low, high + 1, (rows, length)).astype(np.int8) if trial.kernel.points else None
    ratio = rng.integers(1, 2 * high + 2, rows) if trial.kernel.points else np.zeros(rows, np.int64)
    x_high, y_high = activation_code_range(trial.input_bits)[1], activation_code_range(trial.output_bits)[1]
    x = rng.integers(0, x_high + 1, shape.input).astype(np.uint8)
    in_zero, out_zero = int(rng.integers(0, x_high + 1)), int(rng.integers(0, y_high + 1))
    weight_spread = float(np.std(codebook if codebook is not None else np.arange(low, high + 1))) or 1.0
    weight_spread *= 1 + float(ratio.mean())
    spread = math.sqrt(length) * weight_spread * (x_high + 1) / 3.5
    reach = int(spread) + 1
    if trial.large_bias:
        reach = max(2**31 - 2 * length * 128 * (1 + int(ratio.max())) * (x_high + 1), 1)
        spread = reach / 2
    factors = (y_high + 1) / 4 / spread * rng.uniform(0.4, 1.6, rows)
    mantissa, exponent = np.frexp(factors)
    multiplier = np.minimum(np.round(mantissa * 2.0**31), 2**31 - 1).astype(np.int64)
    bias = rng.integers(-reach, reach + 1, rows)
    cut = (y_high // 5, y_high - y_high // 5) if trial.clamped else (0, y_high)
    return Layer(
        trial, codes, codebook, point, ratio, bias.astype(np.int64), multiplier,
        exponent.astype(np.int64) + trial.raised, x, in_zero, out_zero, *cut,
    )  # fmt: skip


def accumulators(layer: Layer) -> Integers:
    """Returns ``sum(w * (x - in_zero)) + bias`` as ``[out_h, out_w, out_c]``."""
    shape = layer.trial.shape
    (in_h, in_w, in_c), (out_h, out_w, out_c), groups = shape.input, shape.output, shape.groups
    weights = layer.weights.reshape(groups, out_c // groups, *shape.kernel, in_c // groups)
    extent = [
        max(size, (count - 1) * stride - pad + (kernel - 1) * dilation + 1) + pad
        for size, count, stride, pad, kernel, dilation in zip(
            (in_h, in_w), (out_h, out_w), shape.stride, shape.padding, shape.kernel, shape.dilation, strict=True
        )
    ]
    centred = np.zeros((*extent, in_c), np.int64)
    top, left = shape.padding
    centred[top : top + in_h, left : left + in_w] = layer.x.astype(np.int64) - layer.in_zero
    total = np.broadcast_to(layer.bias, (out_h, out_w, out_c)).copy()
    for row in range(shape.kernel[0]):
        for column in range(shape.kernel[1]):
            first = row * shape.dilation[0], column * shape.dilation[1]
            window = centred[first[0] :: shape.stride[0], first[1] :: shape.stride[1]][:out_h, :out_w]
            parts = window.reshape(out_h, out_w, groups, in_c // groups)
            total += np.einsum("yxgi,goi->yxgo", parts, weights[:, :, row, column]).reshape(total.shape)
    return total


def expected(layer: Layer) -> NDArray[np.uint8]:
    """Returns the output codes ``[out_h, out_w, out_c]``."""
    acc = accumulators(layer)
    if np.abs(acc).max(initial=0) >= 2**31:
        raise VerificationError("the drawn layer leaves int32")
    codes = requantize(acc, layer.multiplier, layer.shift, layer.trial.rounding) + layer.out_zero
    return np.clip(codes, layer.low, layer.high).astype(np.uint8)


class Runner:
    """A program with some kernels in it, built once for a target."""

    def __init__(
        self,
        target: Target,
        kernels: Sequence[Kernel],
        directory: Path,
        *,
        count: bool = False,
        flags: Sequence[str] = OPTIMISATION,
    ) -> None:
        """Builds the program in ``directory`` (and the counting plugin, if instructions are to be counted).

        Raises:
            ExportError: the compiler or emulator is missing, or refused something.
        """
        self._target, self._directory = target, directory
        self._index = {kernel.name: index for index, kernel in enumerate(kernels)}
        names = [kernel.name for kernel in kernels]
        table = directory / "kernel_table.c"
        directory.mkdir(parents=True, exist_ok=True)
        table.write_text(
            '#include "ddq_kernels.h"\n'
            + "".join(f"ddq_kernel {name};\n" for name in names)
            + f"extern ddq_kernel *const ddq_trial_kernels[];\n"
            f"ddq_kernel *const ddq_trial_kernels[] = {{{', '.join(names)}}};\n",
            encoding="utf-8",
        )
        self._points = any(kernel.points for kernel in kernels)
        flags = (*flags, "-DDDQ_TRIAL_POINTS") if self._points else flags
        sources = [RUNTIME / name for name in dict.fromkeys(kernel.source for kernel in kernels)]
        self.elf = build(target, [*sources, BOARDS / "kernel_trial.c", table], directory / "kernel_trial.elf", flags)
        self._plugin = counting_plugin(target, self.elf, directory) if count else None

    def run(self, trials: Sequence[Trial]) -> list[int]:
        """Runs the trials in one program; returns each kernel call's executed instructions ([] without counting).

        Raises:
            VerificationError: an output differs from NumPy's, or a buffer was overrun; names the trial.
            ExportError: the program failed.
        """
        layers = [draw(trial) for trial in trials]
        cases = struct.pack("<i", len(layers)) + b"".join(self._record(layer) for layer in layers)
        (self._directory / "cases.bin").write_bytes(cases)
        counts, results = self._directory / "counts.txt", self._directory / "results.bin"
        counts.unlink(missing_ok=True)
        results.unlink(missing_ok=True)
        plugin = f"{self._plugin},out={counts}" if self._plugin else None
        done = run(self._target, self.elf, self._directory, ["cases.bin", "results.bin"], plugin=plugin)
        if done.returncode:
            raise ExportError(f"{self._target.name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
        self._check(layers, results.read_bytes())
        return [int(line) for line in counts.read_text(encoding="ascii").split()] if plugin else []

    def _record(self, layer: Layer) -> bytes:
        trial, shape = layer.trial, layer.trial.shape
        kernel = trial.kernel
        stored = kernel.layout(layer.codes, trial.weight_bits, shape)
        if len(stored) != len(layer.codes) * row_bytes(layer.codes.shape[1], trial.weight_bits):
            raise VerificationError(f"{kernel.name}: the layout has {len(stored)} bytes")
        offset = layer.in_zero if kernel.offset is None else kernel.offset
        bias = layer.bias + (offset - layer.in_zero) * layer.weights.sum(1)
        codebook = b"" if layer.codebook is None else layer.codebook.tobytes()
        point = b"" if layer.point is None else kernel.layout(layer.point, trial.weight_bits, shape)
        ratio = b"" if layer.point is None else layer.ratio.astype("<i2").tobytes()
        x = pack_rows(layer.x.reshape(1, -1), trial.input_bits)
        scratch = kernel.scratch_bytes(shape, trial.weight_bits, trial.input_bits)
        header = (
            self._index[kernel.name], len(stored), len(codebook), len(x), _output_bytes(trial), scratch,
            *shape.input, *shape.output, shape.groups, *shape.kernel, *shape.stride, *shape.padding, *shape.dilation,
            trial.weight_bits, trial.input_bits, trial.output_bits, layer.in_zero, layer.out_zero, layer.low,
            layer.high, int(trial.rounding == "double"),
        )  # fmt: skip
        arrays = (bias.astype("<i4"), layer.multiplier.astype("<i4"), layer.shift.astype("i1"))
        parts = (stored, *(array.tobytes() for array in arrays), codebook, point, ratio, x)
        numbers = [*header, len(point)] if self._points else [*header]
        return struct.pack(f"<{len(numbers)}i", *numbers) + b"".join(parts)

    def _check(self, layers: Sequence[Layer], results: bytes) -> None:
        start = 0
        for layer in layers:
            trial, want = layer.trial, expected(layer)
            end = start + _output_bytes(trial)
            found = unpack_rows(results[start:end], 1, want.size, trial.output_bits, signed=False).reshape(want.shape)
            if results[end]:
                raise VerificationError(f"{self._target.name}: wrote past buffer {chr(results[end])!r}: {_name(trial)}")
            wrong = np.argwhere(found != want)
            if len(wrong):
                where = tuple(int(i) for i in wrong[0])
                raise VerificationError(
                    f"{self._target.name}: {len(wrong)} of {want.size} codes differ, first at {where}: "
                    f"{found[where]} instead of {want[where]}: {_name(trial)}"
                )
            start = end + 1


def counting_plugin(target: Target, elf: Path, directory: Path) -> str:
    """Builds the plugin that counts from ``ddq_count_begin`` to ``ddq_count_end`` of a program.

    Returns:
        The argument of the emulator's ``-plugin`` without its output file (``,out=FILE``).

    Raises:
        ExportError: the host's compiler refused it.
    """
    library = directory / "libqemu_count.so"
    command = ["cc", "-O2", "-fPIC", "-shared", str(BOARDS / "qemu_count.c"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{' '.join(command)}\n{done.stderr}")
    listed = subprocess.run([target.symbols, str(elf)], capture_output=True, text=True, check=True)
    address = {line.split()[2]: int(line.split()[0], 16) for line in listed.stdout.splitlines() if line[0] != " "}
    begin, end = (address[name] & ~1 for name in ("ddq_count_begin", "ddq_count_end"))
    return f"{library},begin={begin:#x},end={end:#x}"


def _output_bytes(trial: Trial) -> int:
    return activation_bytes(math.prod(trial.shape.output), trial.output_bits)


def _name(trial: Trial) -> str:
    return (
        f"{trial.kernel.name} w{trial.weight_bits} x{trial.input_bits} y{trial.output_bits} {trial.rounding} "
        f"{trial.shape} seed {trial.seed}"
    )
