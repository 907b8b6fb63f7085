"""Costs that no device decides: multiply-accumulates, parameters, bit operations, and an energy proxy.

Bit operations: products of the operands' bitwidths, ``macs x weight bits x input bits``, summed over weighted layers,
once for every point of multipoint weights, as are products and weights in the energy.

Energy proxy: arithmetic plus one movement of every operand through a small SRAM. A product costs in proportion to
the product of its operands' widths, as the area of an array multiplier does; sums are 32 bits wide. It ranks policies
on an imagined accelerator of exact widths; on a processor energy follows latency, so it is not covered that processors
execute narrow operands in wide containers, nor leakage, flash and DRAM.

Source: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, 45 nm, 0.9 V: 8-bit
multiplication 0.2 pJ, 32-bit addition 0.1 pJ, 64-bit access of a 32 KB cache 20 pJ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddq_search.cost import BIT_OPERATIONS, ENERGY, Factor
from ddq_search.graph import ALIASES, WEIGHTED, ModelGraph, Operation, inputs_of, operations
from ddq_search.packing import activation_bytes, weight_bytes
from ddq_search.space import SearchSpace

MULTIPLY_8_J, ADD_32_J = 0.2e-12, 0.1e-12
"""Energy of an 8 x 8-bit product and of a 32-bit sum."""
BYTE_J = 20e-12 / 8
"""Energy of moving one byte through a 32 KB SRAM."""

MACS, PARAMETERS = "macs", "parameters"


def totals(graph: ModelGraph) -> dict[str, int]:
    """Returns what no policy changes: multiply-accumulates of one sample, and weight scalars (shared ones once)."""
    weights = {op.module or op.name: op.weights for op in operations(graph) if op.kind in WEIGHTED}
    return {MACS: sum(op.macs for op in operations(graph)), PARAMETERS: sum(weights.values())}


def factors(graph: ModelGraph, space: SearchSpace) -> Iterator[Factor]:
    """Yields bit operations and energy of every operation."""
    candidates = {variable.name: variable.candidates for variable in space.variables}
    for op in operations(graph):
        if op.kind in ALIASES or op.kind == "input":
            continue
        output = space.activations_of[op.name]
        sources = [space.activations_of[name] for name in inputs_of(graph, op.name)]
        if op.kind in WEIGHTED:
            weights, source = space.weights_of[op.name], sources[0]
            passes = 1 + space.further_points.get(weights, 0)
            products = np.outer(candidates[weights], candidates[source]).astype(np.float64) * op.macs * passes
            moved = np.add.outer(
                passes * _moved(candidates[weights], partial(weight_bytes, op.rows, op.row_length)),
                _moved(candidates[source], partial(activation_bytes, math.prod(op.input_shapes[0]))),
            )
            energy = products / 64 * MULTIPLY_8_J + passes * op.macs * ADD_32_J + moved * BYTE_J
            yield Factor(BIT_OPERATIONS, op.name, "products", (weights, source), products)
            yield Factor(ENERGY, op.name, "compute", (weights, source), energy)
        else:
            yield from _element_energy(op, sources, candidates)
        stored = _moved(candidates[output], partial(activation_bytes, op.output_elements)) * BYTE_J
        yield Factor(ENERGY, op.name, "output", (output,), stored)


def _element_energy(op: Operation, sources: list[str], candidates: Mapping[str, tuple[int, ...]]) -> Iterator[Factor]:
    """One 32-bit sum per element read, and its bytes; a tensor read twice is moved twice."""
    for name, shape in zip(sources, op.input_shapes, strict=True):
        elements = math.prod(shape)
        energy = _moved(candidates[name], partial(activation_bytes, elements)) * BYTE_J + elements * ADD_32_J
        yield Factor(ENERGY, op.name, "input", (name,), energy)


def _moved(bits: tuple[int, ...], size: partial[int]) -> NDArray[np.float64]:
    return np.array([size(b) for b in bits], dtype=np.float64)
