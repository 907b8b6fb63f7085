"""Cost models of your own: seconds per operation in Python, registered by an entry point.

    [project.entry-points."ddq_search.cost_models"]
    my-board = "my_package:MyBoard"

The entry point loads something that, called without arguments, returns a `ddq_search.cost.CostModel`: usually a
subclass of `OperationCostModel`, which asks for the seconds of one operation at one choice of bitwidths and adds flash,
peak RAM and device-free costs. ``--device my-board`` then finds it, and `hardware_models.contract.check` says whether
it keeps the contract.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from ddq_search.arithmetic import Arithmetic
from ddq_search.cost import LATENCY, PEAK_RAM, CostModel, Factor
from ddq_search.errors import CostError
from ddq_search.graph import ALIASES, WEIGHTED, ModelGraph, Operation, inputs_of, operations
from ddq_search.space import SearchSpace
from hardware_models import device_free, storage
from hardware_models.layers import check_kind
from hardware_models.memory import ArenaPlan, plan_arena

GROUP = "ddq_search.cost_models"
"""Group of the entry points."""


def registered() -> dict[str, EntryPoint]:
    """Returns name → entry point of the installed cost models."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(point: EntryPoint) -> CostModel:
    """Returns the cost model behind an entry point.

    Raises:
        CostError: it cannot be loaded, or what it returns lacks a part of the protocol.
    """
    try:
        model = point.load()()
    except Exception as error:
        raise CostError(f"cost model {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    wanted = (
        "name",
        "arithmetic",
        "calibration",
        "factors",
        "arena_bytes",
        "legal_weight_bits",
        "legal_activation_bits",
    )
    missing = [part for part in wanted if not hasattr(model, part)]
    if missing:
        raise CostError(f"cost model {point.name!r} ({point.value}) lacks {', '.join(missing)}")
    found: CostModel = model
    return found


class OperationCostModel(ABC):
    """A cost model that knows the seconds of single operations; implements `ddq_search.cost.CostModel`.

    Attributes:
        name: what reports call it.
        core: processor core.
        runtime: software that executes the network.
        arithmetic: rounding of that software.
        calibration: ``calibrated: …`` or ``uncalibrated: …``, how far milliseconds can be trusted.
        alignment_bytes: of the arena.
        weight_bits: what the device executes, unless `legal_weight_bits` says otherwise.
        activation_bits: likewise, `legal_activation_bits`.
    """

    name: str
    core: str = "unknown core"
    runtime: str = "unknown runtime"
    arithmetic: Arithmetic = "single"
    calibration: str = "uncalibrated: no held-out error is stated"
    alignment_bytes: int = 16
    weight_bits: tuple[int, ...] = (2, 4, 8)
    activation_bits: tuple[int, ...] = (8,)

    @abstractmethod
    def latency_s(self, op: Operation, weight_bits: int | None, input_bits: tuple[int, ...], output_bits: int) -> float:
        """Returns the seconds of one operation, its call included; ``weight_bits`` is None where it has no weights.

        `ddq_search.layer_shape.layer_shape(op)` gives the geometry of a weighted layer. Not asked for inputs and
        aliases, which are free. A layer of multipoint weights is priced as one such pass for every point.
        """

    def scratch_bytes(self, op: Operation, weight_bits: int, input_bits: int) -> int:
        """Returns the scratch RAM of a weighted layer; none unless overridden."""
        return 0

    def legal_weight_bits(self, op: Operation) -> tuple[int, ...]:
        """Bitwidths of weights that the device executes for this layer."""
        check_kind(op)
        return self.weight_bits

    def legal_activation_bits(self, op: Operation) -> tuple[int, ...]:
        """Bitwidths that the device can write for this operation's output."""
        check_kind(op)
        return self.activation_bits

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        """Returns all factors of a model.

        Raises:
            CostError: a price is negative or not finite, or an operation depends on more than three variables.
        """
        result: list[Factor] = []
        scratch: dict[str, Factor] = {}
        for op in operations(graph):
            check_kind(op)
            result.append(self._latency(op, graph, space))
            if op.kind in WEIGHTED:
                scratch[op.name] = self._scratch(op, graph, space)
        result += storage.flash_factors(graph, space)
        result += storage.ram_factors(graph, space, scratch, self.alignment_bytes)
        return result + list(device_free.factors(graph, space))

    def arena_bytes(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> int:
        """Returns the bytes of the arena that the planner lays out for a policy (variable name → bitwidth)."""
        return self.plan(graph, space, choices).total

    def plan(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> ArenaPlan:
        """Returns the arena of a policy (variable name → bitwidth)."""
        bits = {name: choices[variable] for name, variable in space.activations_of.items()}
        scratch = {
            op.name: self.scratch_bytes(op, choices[space.weights_of[op.name]], bits[inputs_of(graph, op.name)[0]])
            for op in operations(graph)
            if op.kind in WEIGHTED
        }
        return plan_arena(graph, bits, scratch, self.alignment_bytes)

    def _latency(self, op: Operation, graph: ModelGraph, space: SearchSpace) -> Factor:
        if op.kind in ALIASES or op.kind == "input":
            return Factor(LATENCY, op.name, "call", (), np.array(0.0))
        sources = [space.activations_of[name] for name in inputs_of(graph, op.name)]
        output = space.activations_of[op.name]
        weights = [space.weights_of[op.name]] if op.kind in WEIGHTED else []
        variables = tuple(dict.fromkeys([*weights, *sources, output]))
        if len(variables) > 3:
            raise CostError(f"{op.name!r} ({op.kind}) depends on {len(variables)} precisions; at most 3 fit a factor")
        passes = 1 + (space.further_points.get(weights[0], 0) if weights else 0)
        table = np.empty(tuple(len(space[name].candidates) for name in variables))
        for index in np.ndindex(table.shape):
            bits = {name: space[name].candidates[i] for name, i in zip(variables, index, strict=True)}
            seconds = self.latency_s(
                op, bits[weights[0]] if weights else None, tuple(bits[name] for name in sources), bits[output]
            )
            if not (math.isfinite(seconds) and seconds >= 0):
                raise CostError(f"{op.name!r} ({op.kind}): {self.name} prices {bits} at {seconds} seconds")
            table[index] = seconds * passes
        return Factor(LATENCY, op.name, "compute", variables, table)

    def _scratch(self, op: Operation, graph: ModelGraph, space: SearchSpace) -> Factor:
        variables = space.weights_of[op.name], space.activations_of[inputs_of(graph, op.name)[0]]
        candidates = [space[name].candidates for name in variables]
        sizes = [float(self.scratch_bytes(op, *bits)) for bits in itertools.product(*candidates)]
        return Factor(PEAK_RAM, op.name, "scratch", variables, np.reshape(sizes, [len(c) for c in candidates]))
