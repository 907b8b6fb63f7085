"""The integer program: a typed intermediate representation that every exporter writes and every executor runs.

A program is a schedule of steps over named tensors. A step computes the tensor of its own name; a tensor holds
unsigned codes on an affine grid, batch left out of its shape: ``[C, H, W]`` for images, ``[F]`` for features. No step
needs a floating-point number: the scales are there for exporters whose formats store them, and are float32 values
because all of those formats store float32.

Invariants are stated once, in `check`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddq_search.arithmetic import ARITHMETICS, Arithmetic
from ddq_search.discrete import Point, integer_weights, weight_problem, weight_reach
from ddq_search.errors import ExportError
from ddq_search.precision import ActivationGrid, activation_code_range

INT32_MAX = 2**31 - 1

WIDE_ACCUMULATOR_MAX = 2**47 - 1
"""Largest int64 accumulator of a convolution that reads 16-bit activations: its product with 15 bits fits int64."""
WIDE_SHIFT_MAX = 7
"""Largest shift of TensorFlow Lite's requantization of an int64 accumulator."""

Rounding = Literal["double", "single", "reduced"]
"""How a requantization rounds: ``double`` = saturating rounding doubling high multiply (ties towards +∞), then a
rounding right shift (ties away from zero); ``single`` = one shift of the 64-bit product (ties towards +∞);
``reduced`` = as ``single`` with the multiplier rounded to 15 bits, as in TensorFlow Lite's convolutions of 16-bit
activations."""

PoolRounding = Literal["half_up", "half_away"]
"""How an average of codes rounds: ``half_up``, or ``half_away`` from the code that is zero in a signed container (128
in int8, 32768 in int16)."""


@dataclass(frozen=True)
class Tensor:
    """One activation tensor: its shape without the batch, its grid, and where the planner put it (bytes)."""

    name: str
    shape: tuple[int, ...]
    grid: ActivationGrid
    arena_offset: int | None = None


@dataclass(frozen=True)
class FixedPoint:
    """The real number ``multiplier / 2^31 * 2^shift``."""

    multiplier: int
    shift: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: computes the tensor ``name`` from the tensors ``inputs`` (a tensor may appear twice)."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Input(Step):
    """Receives the codes of the network's input."""


@dataclass(frozen=True, eq=False)
class Weighted(Step):
    """Convolution or linear layer: ``y = clip(requantize(Σ w (x − zp_x) + bias) + zp_y, low, high)``.

    Padding contributes nothing to the sum.

    Attributes:
        kind: ``conv2d`` or ``linear``.
        module: whose weights these are; uses of one module share their stored bytes.
        codes: ``[rows, C_in / groups, kh, kw]`` or ``[rows, K]``, the sign of the normalisation in them: int8 values,
            or uint8 indices where there is a codebook. What they stand for is `weights`.
        bits: precision of the codes.
        bias: ``[rows]`` int32.
        multiplier: ``[rows]`` int32.
        shift: ``[rows]`` int8.
        scale: ``[rows]`` float32 > 0, effective scale of the weights with normalisation folded in.
        padding: top, bottom, left, right.
        codebook: ``[2^bits]`` int8 levels of non-uniform weights within ±127, None for uniform ones.
        points: further points of multipoint weights.
    """

    kind: str
    module: str
    codes: NDArray[np.int8] | NDArray[np.uint8]
    bits: int
    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    shift: NDArray[np.int8]
    scale: NDArray[np.float32]
    rounding: Rounding
    low: int
    high: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    codebook: NDArray[np.int8] | None = None
    points: tuple[Point, ...] = ()

    @property
    def weights(self) -> NDArray[np.int32]:
        """The integer weights, in the shape of the codes."""
        return integer_weights(self.codes, self.codebook, self.points)

    @property
    def rows(self) -> int:
        """Output channels."""
        return int(self.codes.shape[0])

    @property
    def row_length(self) -> int:
        """Weights per output channel."""
        return int(self.codes[0].size)


@dataclass(frozen=True, eq=False)
class Add(Step):
    """Sum of two tensors on their own grids: both are shifted left and brought to one scale, then requantized."""

    left_shift: int
    factors: tuple[FixedPoint, FixedPoint]
    output_factor: FixedPoint
    rounding: Rounding
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Multiply(Step):
    """Element-wise product; one argument may be ``[C, 1, 1]`` against ``[C, H, W]``."""

    factor: FixedPoint
    rounding: Rounding
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Mean(Step):
    """Mean over both spatial dimensions: ``requantize(Σ (x − zp_x)) + zp_y``, clipped to the grid.

    The multiplier need not be normalised: TensorFlow Lite divides an integer multiplier by the count.
    """

    factor: FixedPoint
    rounding: Rounding


@dataclass(frozen=True, eq=False)
class MaxPool(Step):
    """Largest code of each window; padding never wins."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class AveragePool(Step):
    """Rounded mean code of each window; counted padding holds the zero point."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    count_include_pad: bool
    rounding: PoolRounding


@dataclass(frozen=True, eq=False)
class Lookup(Step):
    """Element-wise function as a table: ``y = table[x]``; ``table`` is ``[256]`` uint8."""

    function: str
    table: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Move(Step):
    """Codes change place, not value.

    Attributes:
        kind: ``concat``, ``reshape``, ``transpose``, ``pixel_shuffle``, ``slice`` or ``output``.
        dim: dimension of concat and slice, batch left out.
        dims: order of transpose, batch left out.
        start: first index of slice.
        stop: index after the last of slice.
    """

    kind: str
    dim: int = 0
    dims: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0


MOVES = frozenset({"concat", "reshape", "transpose", "pixel_shuffle", "slice", "output"})


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """A whole network in integers.

    Attributes:
        arithmetic: name of the runtime arithmetic this was lowered for; each step states the rounding it needs.
        tensors: step name → its output tensor.
        steps: in execution order.
        policy: variable → bitwidth, the policy this was lowered from.
    """

    arithmetic: Arithmetic
    tensors: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    policy: Mapping[str, int]

    @property
    def input(self) -> Tensor:
        """The network's input tensor."""
        return self.tensors[next(step.name for step in self.steps if isinstance(step, Input))]

    @property
    def output(self) -> Tensor:
        """The network's output tensor."""
        return self.tensors[self.steps[-1].name]

    @property
    def policy_sha256(self) -> str:
        """Digest of the policy: the same for the same decisions, whatever their order."""
        return hashlib.sha256(json.dumps(dict(self.policy), sort_keys=True).encode()).hexdigest()


def reach(grid: ActivationGrid) -> int:
    """Returns the largest ``|code − zero_point|`` of a grid.

    >>> reach(ActivationGrid(0.1, 3, 4))
    12
    """
    return max(grid.zero_point, activation_code_range(grid.bits)[1] - grid.zero_point)


def accumulator_bound(step: Weighted, source: ActivationGrid) -> NDArray[np.int64]:
    """Returns ``[rows]`` the largest magnitude any partial sum can take, bias included, in whatever order.

    Points may be summed apart and scaled afterwards, or as one integer weight.
    """
    magnitude = weight_reach(step.codes, step.codebook, step.points)
    return np.asarray(magnitude * reach(source) + np.abs(step.bias.astype(np.int64)))


def check(program: IntegerProgram) -> None:
    """States the invariants of a program.

    Raises:
        ExportError: one is broken; the message names the step.
    """
    _require(program.arithmetic in ARITHMETICS, "program", f"unknown arithmetic {program.arithmetic!r}")
    _require(bool(program.steps) and isinstance(program.steps[0], Input), "program", "the first step must be the input")
    last = program.steps[-1]
    _require(isinstance(last, Move) and last.kind == "output", "program", "the last step must be the output")
    _require(set(program.tensors) == {s.name for s in program.steps}, "program", "steps and tensors differ in name")
    seen: set[str] = set()
    for step in program.steps:
        _require(step.name not in seen, step.name, "computed twice")
        _require(all(source in seen for source in step.inputs), step.name, "reads a tensor before it is computed")
        _check_arity(step)
        seen.add(step.name)
        _check_step(step, program.tensors[step.name], [program.tensors[source] for source in step.inputs])


def _check_arity(step: Step) -> None:
    if isinstance(step, Move) and step.kind == "concat":
        _require(len(step.inputs) > 0, step.name, "has nothing to concatenate")
        return
    expected = 0 if isinstance(step, Input) else 2 if isinstance(step, Add | Multiply) else 1
    _require(len(step.inputs) == expected, step.name, f"has {len(step.inputs)} arguments instead of {expected}")


def _check_step(step: Step, output: Tensor, sources: list[Tensor]) -> None:
    largest = activation_code_range(output.grid.bits)[1]
    if isinstance(step, Weighted | Add | Multiply):
        _require(0 <= step.low <= step.high <= largest, step.name, f"clamp [{step.low}, {step.high}] leaves the grid")
    if isinstance(step, Weighted | Add | Multiply | Mean):
        known = ("double", "single", "reduced") if isinstance(step, Weighted) else ("double", "single")
        _require(step.rounding in known, step.name, f"unknown rounding {step.rounding!r}")
    if isinstance(step, Weighted):
        _check_weighted(step, output, sources[0])
    elif isinstance(step, Add):
        _check_factors(step.name, *step.factors, step.output_factor)
        _require(0 <= step.left_shift <= 20, step.name, f"left shift {step.left_shift} is outside 0 … 20")
        _require(all(f.shift <= 0 for f in step.factors), step.name, "an input of add is scaled up")
    elif isinstance(step, Multiply):
        _check_factors(step.name, step.factor)
    elif isinstance(step, Mean):  # one bit short where the runtime divides the multiplier by the count
        _check_factors(step.name, step.factor, smallest=2**29)
    elif isinstance(step, Lookup):
        _require(all(t.grid.bits <= 8 for t in (output, *sources)), step.name, "a table has no 16-bit codes")
        _require(step.table.shape == (256,), step.name, "the table must have 256 entries")
        _require(int(step.table.max()) <= largest, step.name, f"the table exceeds {output.grid.bits} bits")
    elif isinstance(step, MaxPool | AveragePool | Move):
        tied = all(source.grid == output.grid for source in sources)
        _require(tied, step.name, "input and output must share one grid")
    if isinstance(step, Move):
        _require(step.kind in MOVES, step.name, f"unknown kind {step.kind!r}")
        if step.kind == "pixel_shuffle":
            _check_shuffle(step.name, sources[0].shape, output.shape)


def shuffle_factor(source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Returns the factor r of a pixel shuffle from ``[C r², H, W]`` to ``[C, H r, W r]``.

    >>> shuffle_factor((12, 5, 4), (3, 10, 8))
    2
    """
    return output[1] // source[1]


def _check_shuffle(name: str, source: tuple[int, ...], output: tuple[int, ...]) -> None:
    shuffled = len(source) == len(output) == 3 and output[1] % source[1] == 0
    if shuffled:
        factor = shuffle_factor(source, output)
        shuffled = source == (output[0] * factor**2, output[1] // factor, output[2] // factor)
    _require(shuffled, name, f"{source} does not shuffle into {output}")


def _check_weighted(step: Weighted, output: Tensor, source: Tensor) -> None:
    stored: type[np.integer] = np.int8 if step.codebook is None else np.uint8
    _require(step.codes.dtype == stored and step.codes.size > 0, step.name, f"weight codes must be {stored.__name__}")
    problem = weight_problem(step.codes, step.bits, step.codebook, step.points)
    _require(not problem, step.name, problem)
    for part in (step.bias, step.multiplier, step.shift, step.scale):
        _require(part.shape == (step.rows,), step.name, "per-channel constants need one entry per output channel")
    rank = {"conv2d": 4, "linear": 2}.get(step.kind)
    _require(step.codes.ndim == rank, step.name, f"weights of shape {step.codes.shape} do not make a {step.kind}")
    _require(output.shape[0] == step.rows, step.name, f"{step.rows} rows cannot fill an output of {output.shape}")
    depth = step.codes.shape[1] * step.groups
    _require(source.shape[0] == depth, step.name, f"weights of depth {depth} cannot read {source.shape}")
    for multiplier, shift in zip(step.multiplier.tolist(), step.shift.tolist(), strict=True):
        _check_factors(step.name, FixedPoint(multiplier, shift))
    _require(bool((step.scale > 0).all() and np.isfinite(step.scale).all()), step.name, "scales must be positive")
    bound = accumulator_bound(step, source.grid)
    worst = int(bound.argmax())
    wide = step.rounding == "reduced"
    name, limit = ("int64", WIDE_ACCUMULATOR_MAX) if wide else ("int32", INT32_MAX)
    _require(int(bound[worst]) <= limit, step.name, f"channel {worst} may overflow its {name} accumulator")
    _require(not wide or int(step.shift.max()) <= WIDE_SHIFT_MAX, step.name, f"a multiplier exceeds 2^{WIDE_SHIFT_MAX}")


def _check_factors(name: str, *factors: FixedPoint, smallest: int = 2**30) -> None:
    for factor in factors:
        normal = smallest <= factor.multiplier <= INT32_MAX and -31 <= factor.shift <= 30
        _require(normal or (factor.multiplier, factor.shift) == (0, 0), name, f"{factor} is not a fixed-point number")


def _require(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise ExportError(f"integer program, {name!r}: {problem}")
