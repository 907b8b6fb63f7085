"""From a profile's engine to seconds and scratch bytes of single operations.

A weighted layer runs on the *cheapest* kernel that its codes fit: one of exactly their widths, or, where the runtime
unpacks, a wider one. So a bitwidth never costs more than its container plus the unpacking, and a K too short for a
low-bit kernel gains nothing. Where the profile is of our own kernels, the C export takes the same choice.

Covered: what the kernels' terms count (tiles and tails: staircases), unpacking, packing, calls, memory bandwidth, one
speed-up per number of threads. Not covered: cache conflicts, frequency scaling, the interpreter around the kernels.

Legend: W candidates of the weights, A candidates of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import CostError
from ddq_search.graph import Operation
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import activation_bytes, weight_bytes
from ddq_search.precision import storage_bits
from hardware_models.engine import ElementCost, Engine, Kernel, Rate
from hardware_models.layers import elements_read
from hardware_models.terms import scratch, work

Table = NDArray[np.float64]


class Pricer:
    """Seconds and scratch bytes of operations on one device."""

    def __init__(self, engine: Engine, clock_hz: float, threads: int = 1) -> None:
        """Compiles an engine.

        Raises:
            CostError: the engine has no speed-up for this number of threads.
        """
        if threads != 1 and threads not in engine.thread_speedup:
            known = sorted({1, *engine.thread_speedup})
            raise CostError(f"no measured speed-up for {threads} threads; known: {known}")
        self.engine = engine
        unit_s = 1e-9 if engine.unit == "nanoseconds" else 1.0 / clock_hz
        speedup = 1.0 if threads == 1 else engine.thread_speedup[threads].value
        self.seconds_per_unit = engine.cycles_per_unit.value * unit_s / speedup
        self.call_s = engine.call.value * self.seconds_per_unit
        self._unpack = {8: 0.0} | {bits: figure.value for bits, figure in engine.unpack.items()}
        self._pack = {8: 0.0, 4: 0.0, 2: 0.0} | {bits: figure.value for bits, figure in engine.pack.items()}

    def layer(
        self, name: str, shape: LayerShape, weight_bits: Sequence[int], input_bits: Sequence[int]
    ) -> tuple[Table, Table]:
        """Returns latency in seconds and scratch in bytes of a weighted layer, both ``[W, A]``."""
        kernels = [kernel for kernel in self.engine.kernels if kernel.executes(shape)]
        seconds = np.empty((len(weight_bits), len(input_bits)))
        scratch_bytes = np.empty_like(seconds)
        own = [(work(kernel.terms, shape, kernel), scratch(kernel.scratch, shape, kernel)) for kernel in kernels]
        for row, column in np.ndindex(seconds.shape):
            widths = storage_bits(weight_bits[row]), storage_bits(input_bits[column])
            index, units = self._cheapest(name, shape, kernels, [units for units, _ in own], *widths)
            moved = (
                weight_bytes(shape.channels, shape.row_length, weight_bits[row]),
                activation_bytes(shape.inputs, input_bits[column]),
            )
            seconds[row, column] = self._seconds(units, *moved)
            scratch_bytes[row, column] = own[index][1] + _unpacked_bytes(kernels[index], shape, *widths)
        return seconds, scratch_bytes

    def kernel_of(self, name: str, shape: LayerShape, weight_bits: int, input_bits: int) -> Kernel:
        """Returns the kernel that a weighted layer is priced on."""
        kernels = [kernel for kernel in self.engine.kernels if kernel.executes(shape)]
        own = [work(kernel.terms, shape, kernel) for kernel in kernels]
        index, _ = self._cheapest(name, shape, kernels, own, storage_bits(weight_bits), storage_bits(input_bits))
        return kernels[index]

    def layer_output(self, shape: LayerShape, output_bits: Sequence[int]) -> Table | None:
        """Returns the seconds of requantizing, packing and storing the output, one per candidate.

        ``None`` where a kernel's terms hold all of it.
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

    def element(
        self, op: Operation, cost: ElementCost, input_bits: Sequence[NDArray[np.int64]], output_bits: NDArray[np.int64]
    ) -> Table:
        """Returns the seconds of an operation without weights, broadcast over its tensors' bitwidths."""
        read, written = elements_read(op) * cost.per_read.value, op.output_elements * cost.per_output.value
        if read == written == 0.0:
            return np.zeros(np.broadcast_shapes(*(bits.shape for bits in input_bits), output_bits.shape))
        sizes = [op.output_elements] if op.kind == "slice" else [math.prod(shape) for shape in op.input_shapes]
        units = _each(output_bits, partial(self._stored, cost, op.output_elements, written))
        moved = _each(output_bits, partial(activation_bytes, op.output_elements))
        for shape, size, bits in zip(op.input_shapes, sizes, input_bits, strict=True):
            loaded = partial(self._loaded, cost, size, shape[0], read * size / sum(sizes))
            units = np.add(units, _each(bits, loaded))
            moved = np.add(moved, _each(bits, partial(activation_bytes, size)))
        return self._combined(units * self.seconds_per_unit, _time(moved, self.engine.activation_bandwidth_bytes_per_s))

    def _cheapest(
        self, name: str, shape: LayerShape, kernels: Sequence[Kernel], own: Sequence[float], weights: int, inputs: int
    ) -> tuple[int, float]:
        """Index and work of the cheapest kernel for codes stored at these widths, unpacking included."""
        best: tuple[int, float] | None = None
        for index, kernel in enumerate(kernels):
            exact = (kernel.weight_bits, kernel.activation_bits) == (weights, inputs)
            fits = kernel.weight_bits >= weights and kernel.activation_bits >= inputs and bool(self.engine.unpack)
            if not (exact or fits):
                continue
            units = own[index]
            units += shape.weights * self._widened(weights, kernel.weight_bits)
            units += shape.inputs * self._widened(inputs, kernel.activation_bits)
            if best is None or units < best[1]:
                best = index, units
        if best is None:
            offered = sorted({(kernel.weight_bits, kernel.activation_bits) for kernel in kernels})
            raise CostError(
                f"{name!r} ({shape.layer_class}): {weights}-bit weights with {inputs}-bit activations have no price; "
                f"priced (weights, activations): {offered}"
            )
        return best

    def _widened(self, bits: int, width: int) -> float:
        """Units per element to bring codes stored at ``bits`` to a kernel's width."""
        return 0.0 if bits == width else self._unpack[bits] + self._pack[width]

    def _stored(self, cost: ElementCost, elements: int, units: float, bits: int) -> float:
        return units * bits / 8 if cost.packed else units + elements * self._pack[bits]

    def _loaded(self, cost: ElementCost, elements: int, channels: int, units: float, bits: int) -> float:
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
