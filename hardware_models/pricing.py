"""From a profile's engine to seconds and scratch bytes of single operations.

A weighted layer runs on the *cheapest* kernel that its codes fit: one of exactly their widths, or, where the runtime
unpacks, a wider one. So a bitwidth never costs more than its container plus the unpacking, and a K too short for a
low-bit kernel gains nothing. Where the profile is of our own kernels, the C export takes the same choice.

Weights with a codebook or with further points run on our kernels for them, which are plain C. Each further point is a
pass over all products, at what the first one adds to a layer without. Other runtimes have no such kernels: exporters
write the levels out, so they are priced as 8-bit weights.

Covered: what the kernels' terms count (tiles and tails: staircases), unpacking, packing, calls, memory bandwidth, one
speed-up per number of threads. Not covered: cache conflicts, frequency scaling, the interpreter around the kernels.

Legend: W candidates of the weights, A candidates of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import CostError
from ddq_search.export.c.kernels import Kernel as CKernel
from ddq_search.export.c.registry import all_kernels
from ddq_search.graph import Operation
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import activation_bytes, weight_bytes
from ddq_search.precision import storage_bits
from hardware_models.engine import ElementCost, Engine, Kernel, Rate
from hardware_models.layers import elements_read
from hardware_models.profile import DeviceProfile
from hardware_models.terms import scratch, work

Table = NDArray[np.float64]


@dataclass(frozen=True)
class WeightForm:
    """How the weights of a layer are stored: as codes, as indices into a codebook, or as several points.

    Attributes:
        codebook: whether they have one.
        points: number of further points.
    """

    codebook: bool = False
    points: int = 0


CODES = WeightForm()
"""Plain codes."""


def pricer_of(profile: DeviceProfile, threads: int = 1) -> Pricer:
    """Returns the pricer of a profile; where it prices our C kernels, these say what they execute and need.

    Raises:
        CostError: no speed-up for this number of threads, or the profile prices a C kernel that there is not.
    """
    own = all_kernels() if profile.runtime_key == "ddq-c" else None
    unknown = sorted({kernel.name for kernel in profile.engine.kernels} - set(own)) if own is not None else []
    if own is not None and unknown:
        raise CostError(f"device {profile.name}: there is no C kernel {unknown[0]!r}; there are {', '.join(own)}")
    return Pricer(profile.engine, profile.clock_hz.value, threads, own)


class Pricer:
    """Seconds and scratch bytes of operations on one device."""

    def __init__(
        self, engine: Engine, clock_hz: float, threads: int = 1, own: Mapping[str, CKernel] | None = None
    ) -> None:
        """Compiles an engine.

        Args:
            engine: the engine.
            clock_hz: what its cycles become seconds with.
            threads: how many.
            own: our C kernels by name, where the profile prices these: they say which shapes they execute and how much
                scratch they take.

        Raises:
            CostError: the engine has no speed-up for this number of threads.
        """
        if threads != 1 and threads not in engine.thread_speedup:
            known = sorted({1, *engine.thread_speedup})
            raise CostError(f"no measured speed-up for {threads} threads; known: {known}")
        self.engine, self._own = engine, own
        self._candidates: dict[LayerShape, list[int]] = {}
        self._chosen: dict[tuple[LayerShape, int, int, WeightForm], tuple[int, float]] = {}
        self._unpacks = own is None and bool(engine.unpack)  # C kernels unpack themselves
        unit_s = 1e-9 if engine.unit == "nanoseconds" else 1.0 / clock_hz
        speedup = 1.0 if threads == 1 else engine.thread_speedup[threads].value
        self.seconds_per_unit = engine.cycles_per_unit.value * unit_s / speedup
        self.call_s = engine.call.value * self.seconds_per_unit
        self._unpack = {8: 0.0} | {bits: figure.value for bits, figure in engine.unpack.items()}
        self._pack = {8: 0.0, 4: 0.0, 2: 0.0} | {bits: figure.value for bits, figure in engine.pack.items()}

    def layer(
        self, name: str, shape: LayerShape, weight_bits: Sequence[int], input_bits: Sequence[int],
        form: WeightForm = CODES,
    ) -> tuple[Table, Table]:  # fmt: skip
        """Returns latency in seconds and scratch in bytes of a weighted layer, both ``[W, A]``."""
        seconds = np.empty((len(weight_bits), len(input_bits)))
        scratch_bytes = np.empty_like(seconds)
        for row, column in np.ndindex(seconds.shape):
            bits = weight_bits[row], input_bits[column]
            widths = self._stored_bits(bits[0], form), storage_bits(bits[1])
            index, units = self._cheapest(name, shape, *widths, form)
            seconds[row, column] = self._seconds(units, *self._moved(shape, *bits, form))
            scratch_bytes[row, column] = self._scratch(self.engine.kernels[index], shape, *widths)
        return seconds, scratch_bytes

    def kernel_of(
        self, name: str, shape: LayerShape, weight_bits: int, input_bits: int, form: WeightForm = CODES
    ) -> Kernel:
        """Returns the kernel that a weighted layer is priced on."""
        index, _ = self._cheapest(name, shape, self._stored_bits(weight_bits, form), storage_bits(input_bits), form)
        return self.engine.kernels[index]

    def layer_output(self, shape: LayerShape, output_bits: Sequence[int]) -> Table | None:
        """Returns the seconds of requantizing, packing and storing the output, one per candidate.

        ``None`` where the kernels' terms hold all of it.
        """
        if self.engine.output is None and not self.engine.pack:
            return None
        requantize = self.engine.output.value if self.engine.output is not None else 0.0
        return np.array(
            [
                self._seconds(
                    shape.outputs * (requantize + self._pack[storage_bits(bits)]),
                    0,
                    activation_bytes(shape.outputs, bits),
                )
                for bits in output_bits
            ]
        )

    def packing(
        self, name: str, shape: LayerShape, weight_bits: int, input_bits: int, output_bits: Sequence[int],
        form: WeightForm = CODES,
    ) -> Table:  # fmt: skip
        """Returns what a layer takes longer because its kernel also stores the output, one per candidate.

        Kernels that price their own packing overlap it with everything else, so this is a difference.
        """
        stored = self._stored_bits(weight_bits, form), storage_bits(input_bits)
        index, units = self._cheapest(name, shape, *stored, form)
        kernel, (weights, inputs) = self.engine.kernels[index], self._moved(shape, weight_bits, input_bits, form)
        result = []
        for bits in output_bits:
            packed = work(kernel.pack[storage_bits(bits)], shape, kernel) if storage_bits(bits) < 8 else 0.0
            outputs = activation_bytes(shape.outputs, bits)
            result.append(self._seconds(units + packed, weights, inputs + outputs))
        return np.array(result) - self._seconds(units, weights, inputs)

    def _stored_bits(self, bits: int, form: WeightForm) -> int:
        """Width of the weights that a kernel reads: levels and sums are written out where it has no kernel for them."""
        return storage_bits(bits) if form == CODES or self._own is not None else 8

    def _moved(self, shape: LayerShape, weight_bits: int, input_bits: int, form: WeightForm) -> tuple[int, int]:
        """Bytes of weights and of inputs."""
        stored = weight_bits if form == CODES or self._own is not None else 8
        passes = 1 + form.points if self._own is not None else 1
        return passes * weight_bytes(shape.channels, shape.row_length, stored), activation_bytes(
            shape.inputs, input_bits
        )

    def _is_for(self, kernel: Kernel, form: WeightForm) -> bool:
        """Whether a kernel reads weights of that form."""
        if self._own is None:
            return True
        own = self._own[kernel.name]
        return own.codebook == form.codebook and own.points == bool(form.points)

    def _executing(self, shape: LayerShape) -> list[int]:
        """Indices of the kernels for a shape; one with a condition stands for its namesake without."""
        found = [
            index
            for index, kernel in enumerate(self.engine.kernels)
            if kernel.executes(shape) and (self._own is None or self._own[kernel.name].executes(shape))
        ]
        special = {_key(self.engine.kernels[i]) for i in found if self.engine.kernels[i].conditional}
        return [i for i in found if self.engine.kernels[i].conditional or _key(self.engine.kernels[i]) not in special]

    def _scratch(self, kernel: Kernel, shape: LayerShape, weights: int, inputs: int) -> int:
        if self._own is not None:
            return self._own[kernel.name].scratch_bytes(shape, weights, inputs)
        return scratch(kernel.scratch, shape, kernel) + _unpacked_bytes(kernel, shape, weights, inputs)

    def element(
        self, op: Operation, cost: ElementCost, input_bits: Sequence[NDArray[np.int64]], output_bits: NDArray[np.int64]
    ) -> Table:
        """Returns the seconds of an operation without weights, broadcast over its tensors' bitwidths."""
        read, written = elements_read(op) * cost.per_read.value, op.output_elements * cost.per_output.value
        if read == written == 0.0:
            return np.zeros(np.broadcast_shapes(*(bits.shape for bits in input_bits), output_bits.shape))
        sizes = [op.output_elements] if op.kind == "slice" else [math.prod(shape) for shape in op.input_shapes]
        reads = elements_read(op) / sum(sizes)
        units = _each(output_bits, partial(self._stored, cost, op.output_elements, written))
        moved = _each(output_bits, partial(activation_bytes, op.output_elements))
        for shape, size, bits in zip(op.input_shapes, sizes, input_bits, strict=True):
            loaded = partial(self._loaded, cost, size * reads, shape[0], read * size / sum(sizes))
            units = np.add(units, _each(bits, loaded))
            moved = np.add(moved, _each(bits, partial(activation_bytes, size)))
        return self._combined(units * self.seconds_per_unit, _time(moved, self.engine.activation_bandwidth_bytes_per_s))

    def _cheapest(self, name: str, shape: LayerShape, weights: int, inputs: int, form: WeightForm) -> tuple[int, float]:
        """Index and work of the cheapest kernel for codes stored at these widths, unpacking included."""
        if form.points > 1 and self._own is not None:
            index, one = self._cheapest(name, shape, weights, inputs, WeightForm(points=1))
            none = next(
                work(kernel.terms, shape, kernel)
                for kernel in self.engine.kernels
                if self._own[kernel.name].family == "portable"
                and self._is_for(kernel, CODES)
                and (kernel.weight_bits, kernel.activation_bits) == (weights, inputs)
                and kernel.executes(shape)
            )
            return index, one + (form.points - 1) * (one - none)
        known = self._chosen.get((shape, weights, inputs, form))
        if known is not None:
            return known
        if shape not in self._candidates:
            self._candidates[shape] = self._executing(shape)
        best: tuple[int, float] | None = None
        for index in self._candidates[shape]:
            kernel = self.engine.kernels[index]
            exact = (kernel.weight_bits, kernel.activation_bits) == (weights, inputs)
            fits = self._unpacks and kernel.weight_bits >= weights and kernel.activation_bits >= inputs
            if not ((exact or fits) and self._is_for(kernel, form)):
                continue
            units = work(kernel.terms, shape, kernel)
            units += shape.weights * self._widened(weights, kernel.weight_bits)
            units += shape.inputs * self._widened(inputs, kernel.activation_bits)
            if best is None or units < best[1]:
                best = index, units
        if best is None:
            kernels = [kernel for i in self._candidates[shape] if self._is_for(kernel := self.engine.kernels[i], form)]
            offered = sorted({(kernel.weight_bits, kernel.activation_bits) for kernel in kernels})
            kind = " as codebook" if form.codebook else " with further points" if form.points else ""
            raise CostError(
                f"{name!r} ({shape.layer_class}): {weights}-bit weights{kind} with {inputs}-bit activations have no "
                f"price; priced (weights, activations): {offered}"
            )
        self._chosen[shape, weights, inputs, form] = best
        return best

    def _widened(self, bits: int, width: int) -> float:
        """Units per element to bring codes stored at ``bits`` to a kernel's width."""
        return 0.0 if bits == width else self._unpack[bits] + self._pack[width]

    def _stored(self, cost: ElementCost, elements: int, units: float, bits: int) -> float:
        return units * bits / 8 if cost.packed else units + elements * self._pack[bits]

    def _loaded(self, cost: ElementCost, elements: float, channels: int, units: float, bits: int) -> float:
        if not cost.packed:
            return units + (elements * self._unpack[bits] if bits < 8 else 0.0)
        if channels * bits % 8:  # channels that do not fill bytes are moved one by one
            return units + elements * (self._unpack[bits] + self._pack[bits])
        return units * bits / 8

    def _seconds(self, units: float, weights_bytes: float, activations_bytes: float) -> float:
        memory = 0.0
        if self.engine.weight_bandwidth_bytes_per_s is not None:
            memory += weights_bytes / self.engine.weight_bandwidth_bytes_per_s.value
        if self.engine.activation_bandwidth_bytes_per_s is not None:
            memory += activations_bytes / self.engine.activation_bandwidth_bytes_per_s.value
        compute = units * self.seconds_per_unit
        return compute + memory if self.engine.combine == "sum" else max(compute, memory)

    def _combined(self, compute: Table, memory: Table) -> Table:
        return compute + memory if self.engine.combine == "sum" else np.maximum(compute, memory)


def _time(moved: Table, bandwidth: Rate | None) -> Table:
    return np.zeros_like(moved) if bandwidth is None else moved / bandwidth.value


def _key(kernel: Kernel) -> tuple[str, int, int]:
    return kernel.name, kernel.weight_bits, kernel.activation_bits


def _unpacked_bytes(kernel: Kernel, shape: LayerShape, weights: int, inputs: int) -> int:
    """Scratch for operands brought to the kernel's widths: all weights, and the input rows of one row of outputs."""
    size = weight_bytes(shape.channels, shape.row_length, kernel.weight_bits) if weights < kernel.weight_bits else 0
    if inputs < kernel.activation_bits:
        size += activation_bytes(shape.window_rows_elements, kernel.activation_bits)
    return size


def _each(bits: NDArray[np.int64], price: Callable[[int], float]) -> Table:
    """Applies a price per storage width to an array of bitwidths, keeping its shape."""
    flat = [float(price(storage_bits(int(b)))) for b in bits.ravel()]
    return np.array(flat, dtype=np.float64).reshape(bits.shape)
