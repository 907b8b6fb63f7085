"""Latency of our own low-bit NEON kernels: register tiles, padding, gathering, unpacking, packing, bandwidth.

A weighted layer runs on the *cheapest* kernel that its codes fit: a kernel of its own width, or a wider one after
unpacking. So a bitwidth never costs more than its container plus the unpacking, and a K too short for a low-bit
kernel (27 against 64 or 256) gains nothing.

Covered: zero padding of K and of partial tiles (staircases), gathering of columns, unpacking of weights and
activations, requantizing, packing of 2- and 4-bit outputs, bandwidth of main memory as a roofline, call overhead.
Not covered: cache conflicts, several threads, Winograd, frequency scaling.

Legend: W candidates of the weights, A candidates of the input, K weights per output channel (within its group).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddq_search.graph import Operation
from ddq_search.packing import activation_bytes, weight_bytes
from ddq_search.precision import storage_bits
from hardware_models.layers import LayerFacts, elements_read
from hardware_models.profile import ElementCost, Kernel, TileEngine

Table = NDArray[np.float64]


def tile_cycles(kernel: Kernel, facts: LayerFacts) -> float:
    """Returns the cycles inside a kernel's tiles, padding of K, pixels and channels included."""
    padded = padded_row(kernel, facts)
    tiles = -(-facts.pixels // kernel.tile_pixels) * -(-facts.channels // facts.groups // kernel.tile_channels)
    per_tile = kernel.tile_pixels * kernel.tile_channels * padded / kernel.macs_per_cycle.value
    if kernel.block is not None and kernel.block_cycles is not None:
        per_tile += -(-padded // kernel.block) * kernel.block_cycles.value
    return facts.groups * tiles * (per_tile + kernel.tile_cycles.value)


def padded_row(kernel: Kernel, facts: LayerFacts) -> int:
    """Returns K rounded up to what the kernel reads at once."""
    return -(-facts.row_length // kernel.k_multiple) * kernel.k_multiple


class TilePricer:
    """Seconds and scratch bytes of operations on a device with our own kernels."""

    def __init__(self, engine: TileEngine, clock_hz: float) -> None:
        self.engine = engine
        self.seconds_per_cycle = 1.0 / (clock_hz * engine.attained_fraction.value)
        self.call_s = engine.call_cycles.value * self.seconds_per_cycle
        self._unpack = {8: 0.0} | {bits: figure.value for bits, figure in engine.unpack_cycles.items()}
        self._pack = {8: 0.0} | {bits: figure.value for bits, figure in engine.pack_cycles.items()}

    def layer(
        self, name: str, facts: LayerFacts, weight_bits: Sequence[int], input_bits: Sequence[int]
    ) -> tuple[Table, Table]:
        """Returns latency in seconds and scratch in bytes of a weighted layer, both ``[W, A]``."""
        if facts.layer_class == "depthwise":
            options = [self._depthwise(facts, weight_bits, input_bits)]
        else:
            options = [self._product(kernel, facts, weight_bits, input_bits) for kernel in self.engine.kernels]
        cycles = np.stack([option[0] for option in options])
        best = cycles.argmin(0)[None]
        scratch = np.take_along_axis(np.stack([option[1] for option in options]), best, 0)[0]
        rows = facts.channels
        moved = np.add.outer(
            np.array([weight_bytes(rows, facts.row_length, bits) for bits in weight_bits], dtype=np.float64),
            np.array([activation_bytes(facts.inputs, bits) for bits in input_bits], dtype=np.float64),
        )
        return self._roofline(np.take_along_axis(cycles, best, 0)[0], moved), scratch

    def kernel_of(self, facts: LayerFacts, weight_bits: int, input_bits: int) -> str:
        """Returns the name of the kernel that a weighted layer is priced on."""
        if facts.layer_class == "depthwise":
            return "depthwise"
        prices = [self._product(kernel, facts, (weight_bits,), (input_bits,))[0] for kernel in self.engine.kernels]
        return self.engine.kernels[int(np.argmin([price.item() for price in prices]))].name

    def layer_output(self, facts: LayerFacts, output_bits: Sequence[int]) -> Table | None:
        """Returns the seconds of requantizing, packing and storing the output, one per candidate."""
        pack = np.array([self._pack[storage_bits(bits)] for bits in output_bits])
        moved = np.array([activation_bytes(facts.outputs, bits) for bits in output_bits], dtype=np.float64)
        return self._roofline(facts.outputs * (self.engine.requantize_cycles_per_output.value + pack), moved)

    def element(
        self, op: Operation, cost: ElementCost, input_bits: Sequence[NDArray[np.int64]], output_bits: NDArray[np.int64]
    ) -> Table:
        """Returns the seconds of an operation without weights, broadcast over its tensors' bitwidths."""
        read, written = elements_read(op) * cost.per_read.value, op.output_elements * cost.per_output.value
        if read == written == 0.0:
            return np.zeros(np.broadcast_shapes(*(bits.shape for bits in input_bits), output_bits.shape))
        sizes = [int(np.prod(shape)) for shape in op.input_shapes]
        if op.kind == "slice":
            sizes = [op.output_elements]
        total = sum(sizes)
        cycles = _each(output_bits, lambda bits: written * (bits / 8 if cost.packed else 1))
        moved = _each(output_bits, lambda bits: activation_bytes(op.output_elements, bits))
        if not cost.packed:
            cycles = cycles + _each(output_bits, lambda bits: op.output_elements * self._pack[bits])
        for shape, size, bits in zip(op.input_shapes, sizes, input_bits, strict=True):
            share = read * size / total
            if cost.packed:
                cycles = cycles + _each(bits, lambda b, s=share, n=size, c=shape[0]: self._copy(s, n, c, b))
            else:
                cycles = cycles + _each(bits, lambda b, s=share, n=size: s + n * self._unpack[b])
            moved = moved + _each(bits, lambda b, n=size: activation_bytes(n, b))
        return self._roofline(cycles, moved)

    def _copy(self, cycles: float, elements: int, channels: int, bits: int) -> float:
        """Copies whole bytes; a channel count that does not fill bytes is moved element by element."""
        if channels * bits % 8:
            return cycles + elements * self.engine.gather_cycles_per_unaligned_element.value
        return cycles * bits / 8

    def _roofline(self, cycles: Table, moved: Table) -> Table:
        return np.maximum(cycles * self.seconds_per_cycle, moved / self.engine.bandwidth_bytes_per_s.value)

    def _widen(self, bits: int, width: int) -> float:
        """Cycles per element to bring codes stored at ``bits`` to a kernel's width."""
        if storage_bits(bits) == width:
            return 0.0
        return self._unpack[storage_bits(bits)] + self._pack[width]

    def _product(
        self, kernel: Kernel, facts: LayerFacts, weight_bits: Sequence[int], input_bits: Sequence[int]
    ) -> tuple[Table, Table]:
        """Cycles (infinite where the codes do not fit the kernel) and scratch bytes, ``[W, A]``."""
        weights, weights_scratch = _axes(len(weight_bits), len(weight_bits))
        inputs, inputs_scratch = _axes(len(input_bits), len(input_bits))
        for row, bits in enumerate(weight_bits):
            if storage_bits(bits) > kernel.weight_bits:
                weights[row] = np.inf
            elif storage_bits(bits) < kernel.weight_bits:
                weights[row] = facts.weights * self._widen(bits, kernel.weight_bits)
                weights_scratch[row] = weight_bytes(facts.channels, facts.row_length, kernel.weight_bits)
        for column, bits in enumerate(input_bits):
            if storage_bits(bits) > kernel.activation_bits:
                inputs[column] = np.inf
            elif storage_bits(bits) < kernel.activation_bits:
                inputs[column] = facts.inputs * self._widen(bits, kernel.activation_bits)
                inputs_scratch[column] = activation_bytes(facts.window_rows_elements, kernel.activation_bits)
        gather, panel = self._gather(kernel, facts)
        cycles = weights[:, None] + inputs[None] + (tile_cycles(kernel, facts) + gather)
        return cycles, weights_scratch[:, None] + inputs_scratch[None] + panel

    def _gather(self, kernel: Kernel, facts: LayerFacts) -> tuple[float, float]:
        """Cycles and scratch bytes of bringing the rows of one tile of pixels into columns padded to whole K."""
        padded = padded_row(kernel, facts)
        if not facts.gathered and padded == facts.row_length:
            return 0.0, 0.0
        engine = self.engine
        rows = facts.pixels * facts.groups
        row_bytes = padded * kernel.activation_bits / 8
        cycles = rows * (
            row_bytes * engine.gather_cycles_per_byte.value + facts.runs_per_pixel * engine.gather_cycles_per_run.value
        )
        if facts.input_channels // facts.groups * kernel.activation_bits % 8:
            cycles += rows * facts.row_length * engine.gather_cycles_per_unaligned_element.value
        return cycles, kernel.tile_pixels * row_bytes

    def _depthwise(
        self, facts: LayerFacts, weight_bits: Sequence[int], input_bits: Sequence[int]
    ) -> tuple[Table, Table]:
        kernel = self.engine.depthwise
        padded = -(-facts.channels // kernel.channel_multiple) * kernel.channel_multiple
        compute = facts.pixels * padded * facts.row_length / kernel.macs_per_cycle.value
        weights = np.array([facts.weights * self._widen(bits, 8) for bits in weight_bits])
        inputs = np.array([facts.inputs * self._widen(bits, 8) for bits in input_bits])
        unpacked_weights = np.array([facts.weights if storage_bits(bits) < 8 else 0 for bits in weight_bits])
        unpacked_rows = np.array([facts.window_rows_elements if storage_bits(b) < 8 else 0 for b in input_bits])
        scratch = (unpacked_weights[:, None] + unpacked_rows[None]).astype(np.float64)
        return weights[:, None] + inputs[None] + compute, scratch


def _axes(*lengths: int) -> tuple[Table, ...]:
    return tuple(np.zeros(length) for length in lengths)


def _each(bits: NDArray[np.int64], price: object) -> Table:
    """Applies a price per storage width to an array of bitwidths, keeping its shape."""
    assert callable(price)
    return np.array([float(price(storage_bits(int(b)))) for b in bits.ravel()], dtype=np.float64).reshape(bits.shape)
