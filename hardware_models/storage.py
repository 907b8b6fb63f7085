"""Bytes of a policy, the same for every device: flash as the serializer writes it, RAM as the planner lays it out.

Flash: packed weights once per weight tensor (with their levels or further points where they have any), bias, multiplier
and shift per channel for every *use* of it, a table per activation function; everything else is zero and has no factor.

Peak RAM: per schedule step, the bytes of every live tensor and of the step's scratch, see `hardware_models.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from ddq_search.cost import FLASH, PEAK_RAM, Factor
from ddq_search.graph import WEIGHTED, ModelGraph, operations
from ddq_search.packing import CHANNEL_BYTES, TABLE_BYTES, layer_bytes
from ddq_search.space import SearchSpace
from hardware_models.memory import aligned, buffers, tensor_bytes


def flash_factors(graph: ModelGraph, space: SearchSpace) -> Iterator[Factor]:
    """Yields the bytes of all constants."""
    priced: set[str] = set()
    for op in operations(graph):
        if op.kind == "activation":
            yield Factor(FLASH, op.name, "table", (), np.array(float(TABLE_BYTES)))
        if op.kind not in WEIGHTED:
            continue
        weights = space.weights_of[op.name]
        if weights in priced:  # a shared module: its weights lie in flash once, its requantization once per use
            yield Factor(FLASH, op.name, "constants", (), np.array(float(op.rows * CHANNEL_BYTES)))
            continue
        priced.add(weights)
        codebook, points = weights in space.codebook_weights, space.further_points.get(weights, 0)
        sizes = [
            layer_bytes(op.rows, op.row_length, bits, codebook=codebook, points=points)
            for bits in space[weights].candidates
        ]
        yield Factor(FLASH, op.name, "weights", (weights,), np.array(sizes, dtype=np.float64))


def ram_factors(
    graph: ModelGraph, space: SearchSpace, scratch: Mapping[str, Factor], alignment: int
) -> Iterator[Factor]:
    """Yields the live bytes of every step; ``scratch`` holds operation → its scratch, not yet aligned, step open."""
    for buffer in buffers(graph):
        variable = space.activations_of[buffer.name]
        sizes = [tensor_bytes(buffer.elements, bits, alignment) for bits in space[variable].candidates]
        table = np.array(sizes, dtype=np.float64)
        for step in range(buffer.first, buffer.last + 1):
            yield Factor(PEAK_RAM, buffer.name, "tensor", (variable,), table, step)
    for step, op in enumerate(operations(graph)):
        factor = scratch.get(op.name)
        if factor is not None and factor.table.any():
            table = np.array([aligned(int(size), alignment) for size in factor.table.ravel()], dtype=np.float64)
            yield replace(factor, table=table.reshape(factor.table.shape), step=step)
