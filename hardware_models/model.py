"""The cost model of an ARM device: a profile turned into factors of latency, flash and peak RAM.

Latency: one ``compute`` factor per weighted layer over (its weights, its input tensor), one ``output`` factor over its
output tensor where the engine prices it apart, one ``compute`` factor per other operation over its input and output
tensors, one constant ``call`` factor per operation (zero for aliases, never left out).

Flash and peak RAM come from `hardware_models.storage`, bit operations and the energy proxy from
`hardware_models.device_free`: they are the same for every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddq_search.arithmetic import Arithmetic
from ddq_search.cost import LATENCY, PEAK_RAM, Factor
from ddq_search.errors import CostError
from ddq_search.graph import ALIASES, WEIGHTED, ModelGraph, Operation, inputs_of, operations
from ddq_search.layer_shape import layer_class, layer_shape
from ddq_search.space import SearchSpace
from hardware_models import device_free, storage
from hardware_models.layers import PRICED_AS, check_kind
from hardware_models.memory import ArenaPlan, plan_arena
from hardware_models.pricing import WeightForm, pricer_of
from hardware_models.profile import DeviceProfile, load_profile

Table = NDArray[np.float64]


def cost_model(name_or_path: str | Path, threads: int = 1) -> ArmCostModel:
    """Returns the cost model of a shipped device by name, or of a profile file by path.

    Raises:
        CostError: unknown device, a broken profile, or a number of threads without a measured speed-up.
    """
    return ArmCostModel(load_profile(name_or_path), threads)


class ArmCostModel:
    """Prices every operation of `ddq_search.graph` on one device; implements `ddq_search.cost.CostModel`."""

    def __init__(self, profile: DeviceProfile, threads: int = 1) -> None:
        self.profile = profile
        self.pricer = pricer_of(profile, threads)

    @property
    def name(self) -> str:
        """The profile's name."""
        return self.profile.name

    @property
    def core(self) -> str:
        """The processor core."""
        return self.profile.core

    @property
    def runtime(self) -> str:
        """The software that executes the network."""
        return self.profile.runtime

    @property
    def clock_hz(self) -> float:
        """Clock at which cycles become seconds."""
        return self.profile.clock_hz.value

    @property
    def arithmetic(self) -> Arithmetic:
        """Rounding of the runtime that this model prices."""
        return self.profile.arithmetic

    @property
    def calibration(self) -> str:
        """One line that says how far the latency can be trusted: ``calibrated: …`` or ``uncalibrated: …``."""
        return f"{self.profile.calibration.status}: {self.profile.calibration.statement}"

    def legal_weight_bits(self, op: Operation) -> tuple[int, ...]:
        """Bitwidths of weights that the device executes for this layer."""
        check_kind(op)
        return self.profile.legal.weights[layer_class(op)]

    def legal_activation_bits(self, op: Operation) -> tuple[int, ...]:
        """Bitwidths that the device can write for this operation's output."""
        check_kind(op)
        return self.profile.legal.activations

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        """Returns all factors of a model.

        Raises:
            CostError: an operation has no price, or a candidate is not executed by the device; names the layer.
        """
        candidates = {variable.name: variable.candidates for variable in space.variables}
        result: list[Factor] = []
        scratch: dict[str, Factor] = {}
        for op in operations(graph):
            self._check(op, space, candidates)
            result += self._call(op)
            if op.kind in WEIGHTED:
                latency, scratch[op.name] = self._layer(op, graph, space, candidates)
                result += latency
            elif op.kind not in ALIASES and op.kind != "input":
                result.append(self._element(op, graph, space, candidates))
        result += storage.flash_factors(graph, space)
        result += storage.ram_factors(graph, space, scratch, self.profile.memory.alignment_bytes)
        return result + list(device_free.factors(graph, space))

    def arena_bytes(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> int:
        """Returns the bytes of the arena that the planner lays out for a policy (variable name → bitwidth)."""
        return self.plan(graph, space, choices).total

    def plan(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> ArenaPlan:
        """Returns the arena of a policy (variable name → bitwidth): offsets, sizes, live ranges, bytes per step."""
        scratch = {}
        for op in operations(graph):
            if op.kind in WEIGHTED:
                weight_bits = choices[space.weights_of[op.name]]
                input_bits = choices[space.activations_of[inputs_of(graph, op.name)[0]]]
                form = form_of(space, space.weights_of[op.name])
                _, size = self.pricer.layer(op.name, layer_shape(op), (weight_bits,), (input_bits,), form)
                scratch[op.name] = int(size.item())
        bits = {name: choices[variable] for name, variable in space.activations_of.items()}
        return plan_arena(graph, bits, scratch, self.profile.memory.alignment_bytes)

    def kernels(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> dict[str, str]:
        """Returns weighted layer → name of the kernel that a policy is priced on (variable name → bitwidth)."""
        result = {}
        for op in operations(graph):
            if op.kind in WEIGHTED:
                bits = choices[space.weights_of[op.name]], choices[space.activations_of[inputs_of(graph, op.name)[0]]]
                form = form_of(space, space.weights_of[op.name])
                result[op.name] = self.pricer.kernel_of(op.name, layer_shape(op), *bits, form).name
        return result

    def _check(self, op: Operation, space: SearchSpace, candidates: Mapping[str, tuple[int, ...]]) -> None:
        check_kind(op)
        for role, variables in (("weight", space.weights_of), ("activation", space.activations_of)):
            if role == "weight" and op.kind not in WEIGHTED:
                continue
            legal = self.legal_weight_bits(op) if role == "weight" else self.legal_activation_bits(op)
            illegal = [bits for bits in candidates[variables[op.name]] if bits not in legal]
            if illegal:
                raise CostError(
                    f"{op.name!r} ({op.kind}): {role} bits {illegal} are not executed by {self.name}, "
                    f"which offers {list(legal)}"
                )

    def _call(self, op: Operation) -> list[Factor]:
        free = op.kind in ALIASES or op.kind == "input"
        return [Factor(LATENCY, op.name, "call", (), np.array(0.0 if free else self.pricer.call_s))]

    def _layer(
        self, op: Operation, graph: ModelGraph, space: SearchSpace, candidates: Mapping[str, tuple[int, ...]]
    ) -> tuple[list[Factor], Factor]:
        """Latency factors of a weighted layer, and its scratch (a factor whose step is still open)."""
        shape = layer_shape(op)
        weights, output = space.weights_of[op.name], space.activations_of[op.name]
        source = space.activations_of[inputs_of(graph, op.name)[0]]
        form = form_of(space, weights)
        seconds, scratch = self.pricer.layer(op.name, shape, candidates[weights], candidates[source], form)
        result = [Factor(LATENCY, op.name, "compute", (weights, source), seconds)]
        result += self._output(op, (weights, source, output), candidates, form)
        return result, Factor(PEAK_RAM, op.name, "scratch", (weights, source), scratch)

    def _output(
        self, op: Operation, variables: tuple[str, str, str], candidates: Mapping[str, tuple[int, ...]],
        form: WeightForm,
    ) -> list[Factor]:  # fmt: skip
        """Storing a layer's output: over the output alone, or over all three where kernels differ in how they pack."""
        shape, (weights, source, output) = layer_shape(op), variables
        sizes = tuple(len(candidates[name]) for name in variables)
        if not any(kernel.pack for kernel in self.pricer.engine.kernels):
            stored = self.pricer.layer_output(shape, candidates[output])
            return [] if stored is None else [Factor(LATENCY, op.name, "output", (output,), stored)]
        table = np.zeros(sizes)
        for row, column in np.ndindex(sizes[:2]):
            bits = candidates[weights][row], candidates[source][column]
            table[row, column] = self.pricer.packing(op.name, shape, *bits, candidates[output], form)
        if source == output:  # one variable decides both
            return [Factor(LATENCY, op.name, "output", (weights, source), np.einsum("wss->ws", table))]
        return [Factor(LATENCY, op.name, "output", variables, table)]

    def _element(
        self, op: Operation, graph: ModelGraph, space: SearchSpace, candidates: Mapping[str, tuple[int, ...]]
    ) -> Factor:
        sources = [space.activations_of[name] for name in inputs_of(graph, op.name)]
        output = space.activations_of[op.name]
        variables = tuple(dict.fromkeys([*sources, output]))
        if len(variables) > 3:
            raise CostError(f"{op.name!r} ({op.kind}): reads tensors of {len(variables) - 1} precisions; at most 2 fit")
        axes: dict[str, NDArray[np.int64]] = {}
        for axis, name in enumerate(variables):
            shape = [1] * len(variables)
            shape[axis] = -1
            axes[name] = np.array(candidates[name], dtype=np.int64).reshape(shape)
        cost = self.profile.operations[PRICED_AS.get(op.kind, op.kind)]
        table = self.pricer.element(op, cost, [axes[name] for name in sources], axes[output])
        full = np.broadcast_to(table, tuple(len(candidates[name]) for name in variables))
        return Factor(LATENCY, op.name, "compute", variables, np.array(full))


def form_of(space: SearchSpace, weights: str) -> WeightForm:
    """Returns how the weights of a variable are stored."""
    return WeightForm(weights in space.codebook_weights, space.further_points.get(weights, 0))
