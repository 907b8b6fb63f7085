"""The supernet: the user's model, executed along its graph, with a quantizer on every weight and tensor.

Four modes:

- ``float``: no quantizer; computes what the model computes.
- ``fixed``: every variable at one bitwidth (`set_policy`): quantization-aware training of one policy.
- ``gated``: every variable at a sampled candidate, gates receive gradients (`sample`): the search of DDQ.
- ``mixed``: every variable as a weighted sum of its candidates (`mix`): other relaxations.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddq_search import distributed
from ddq_search.batch_statistics import normalize
from ddq_search.discrete import DiscreteNetwork, LayerNumbers
from ddq_search.errors import PolicyError
from ddq_search.folding import layer_numbers
from ddq_search.graph import SAME_GRID, WEIGHTED, ModelGraph, Operation, inputs_of, operations
from ddq_search.operators import CLAMPED_IN_PLACE, free_operation
from ddq_search.precision import FLOAT_BITS, ActivationGrid
from ddq_search.quantizers.choice_of_families import UNIFORM, Quantizers
from ddq_search.quantizers.contract import ActivationQuantizer, Quantizer, WeightQuantizer
from ddq_search.quantizers.gates import Gates, choose, cooled, thresholded
from ddq_search.quantizers.uniform import UniformQuantizer
from ddq_search.space import SearchSpace

_ON_GRID_ALREADY = SAME_GRID - {"avg_pool2d"}
_NEED_RESULT = frozenset({"relu", "sigmoid", "tanh"})
"""Functions whose derivative torch computes from their result."""
_CALIBRATION_VALUES = 16384


class Supernet(nn.Module):
    """A searchable copy of a model.

    Args:
        model: the float model; copied.
        graph: its graph (`ddq_search.trace.trace`).
        space: its search space.
        sets: number of gate sets, one per policy that is searched at the same time.
        input_grid: grid of the input tensor when its codes are known (raw pixels); calibrated otherwise.
        output_grid: grid of the output tensor when its codes shall be pixels; calibrated and trained otherwise.
        gradient_share: see `ddq_search.quantizers.straight_through`.
        gate_start: initial value of every gate, in (−1, 1).
        quantizers: which quantizers its tensors get.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ModelGraph,
        space: SearchSpace,
        *,
        sets: int = 1,
        input_grid: ActivationGrid | None = None,
        output_grid: ActivationGrid | None = None,
        gradient_share: float = 0.25,
        gate_start: float = 0.6,
        quantizers: Quantizers = UNIFORM,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.graph = graph
        self.space = space
        self._operations = list(operations(graph))
        self._inputs = {op.name: inputs_of(graph, op.name) for op in self._operations}
        self._last_use = {source: op.name for op in self._operations for source in self._inputs[op.name]}
        self._modules_by_path = dict(self.model.named_modules())
        self._row = {variable.name: row for row, variable in enumerate(space.variables)}
        self.gates = Gates([len(v.candidates) for v in space.variables], sets, gate_start)
        self.quantizers = nn.ModuleList([self._quantizer(v.name, quantizers) for v in space.variables])
        for quantizer in self.quantizers:
            assert isinstance(quantizer, Quantizer)
            quantizer.gradient_share = gradient_share
        self._allow_overwriting()
        self._exact_input = input_grid is not None
        given = {"input": input_grid, self._operations[-1].name: output_grid}
        self._given = {space.activations_of[name] for name, grid in given.items() if grid is not None}
        for name, grid in given.items():
            if grid is not None:
                self._activation_quantizer(name).requires_grad_(False).set_grid(grid.scale, grid.zero_point)
        self.mode = "float"
        self._choose([0] * len(space.variables))
        self._cumulative: tuple[Tensor, ...] | None = None
        self._shares: tuple[Tensor, ...] = ()
        self._observed: dict[str, list[Tensor]] | None = None
        self.watch: Callable[[str, Tensor], None] | None = None
        """Told the operation and the real values of every tensor that a quantizer stands on."""

    def _quantizer(self, name: str, quantizers: Quantizers) -> Quantizer:
        variable = self.space[name]
        members = [self.graph.nodes[member]["operation"] for member in variable.members]
        if variable.role == "weights":
            return quantizers.for_weights(variable.candidates, self._weight(members[0]).shape[0])
        return quantizers.for_activations(variable.candidates, all(op.nonnegative for op in members))

    def _allow_overwriting(self) -> None:
        """Tells quantizers of activations which tensors and gradients nobody else reads."""
        users = Counter(source for sources in self._inputs.values() for source in sources)
        only_user = {source: op for op in self._operations for source in self._inputs[op.name]}
        for variable in self.space.variables:
            if variable.role == "activations":
                members = [self.graph.nodes[member]["operation"] for member in variable.members]
                made = [op for op in members if op.kind not in _ON_GRID_ALREADY]
                quantizer = self._activation_quantizer(made[0].name if made else members[0].name)
                quantizer.overwrites_input = all(self._unread_result(op) for op in made)
                quantizer.overwrites_gradient = all(
                    users[op.name] == 1 and only_user[op.name].kind in WEIGHTED for op in made
                )

    def _unread_result(self, op: Operation) -> bool:
        """Whether the backward pass of an operation does not need what the operation returned."""
        if op.kind == "input" or (op.kind == "activation" and op.attributes["function"] in _NEED_RESULT):
            return False
        return op.clamp not in _NEED_RESULT or self._can_be_relu(op)

    def _weight(self, op: Operation) -> Tensor:
        weight = self._modules_by_path[op.module or ""].weight
        assert isinstance(weight, Tensor)
        return weight

    def _activation_quantizer(self, op_name: str) -> ActivationQuantizer:
        quantizer = self.quantizers[self._row[self.space.activations_of[op_name]]]
        assert isinstance(quantizer, ActivationQuantizer)
        return quantizer

    # -- modes ------------------------------------------------------------------------------------------------

    def set_float(self) -> None:
        """Switches all quantizers off."""
        self._cumulative, self.mode = None, "float"

    def set_policy(self, policy: Mapping[str, int]) -> None:
        """Fixes every variable at a bitwidth (variable name → bits).

        Raises:
            PolicyError: a variable is missing or the bitwidth is not one of its candidates.
        """
        choices = []
        for variable in self.space.variables:
            bits = policy.get(variable.name)
            if bits not in variable.candidates:
                raise PolicyError(f"{variable.name!r}: {bits} bits is not among {list(variable.candidates)}")
            choices.append(variable.candidates.index(bits))
        self._choose(choices)
        self._cumulative, self.mode = None, "fixed"

    def sample(self, index: int, uniform: Tensor) -> Tensor:
        """Draws a candidate for every variable from one gate set and lets its gates receive gradients.

        Args:
            index: the gate set.
            uniform: ``[V]`` in [0, 1).

        Returns:
            Probabilities ``[V, C]`` of that set, float64, differentiable: what the cost is contracted with.
        """
        cumulative = self.gates.cumulative(index)
        self.sample_from(cumulative, uniform)
        return self.gates.probabilities(cumulative)

    def sample_from(self, cumulative: Tensor, uniform: Tensor | None, temperature: float = 1.0) -> None:
        """As `sample`, from given ``c`` ``[V, C − 1]``, which receives the task gradient.

        The policy is drawn at a temperature (`cooled`); None for ``uniform`` stands for the thresholded gates.
        """
        if uniform is None:
            self._choose(thresholded(cumulative))
        else:
            self._choose(choose(cooled(cumulative.detach(), temperature), uniform))
        self._cumulative = cumulative.unbind(0)
        self.mode = "gated"

    def _choose(self, choices: list[int]) -> None:
        self._choices = choices
        self._chosen = torch.tensor(choices, device=self.gates.exists.device)  # what a compiled graph reads

    def mix(self, shares: Tensor) -> None:
        """Weighs the columns of every variable's quantizer: ``[V, C]``, rows sum to 1, zeros beyond its columns."""
        self._shares, self._cumulative, self.mode = shares.unbind(0), None, "mixed"

    def infer(self) -> None:
        """Lets quantizers whose own parameters imply a bitwidth follow them, whatever the policy."""
        self.set_policy({variable.name: variable.candidates[-1] for variable in self.space.variables})
        for quantizer in self.tensor_quantizers():
            quantizer.inferring = True

    def inferred_probabilities(self) -> Tensor:
        """Returns ``[V, K]`` float64, differentiable: what the quantizers' own parameters imply."""
        width = max(len(variable.candidates) for variable in self.space.variables)
        rows = []
        for quantizer in self.tensor_quantizers():
            implied = quantizer.probabilities()
            assert implied is not None, "the method's quantizers imply bitwidths"
            rows.append(F.pad(implied, (0, width - len(implied))))
        return torch.stack(rows)

    def settle(self) -> None:
        """Ends `infer`: what the quantizers learned is carried over to every candidate."""
        for quantizer in self.tensor_quantizers():
            quantizer.settle()

    @property
    def traceable(self) -> bool:
        """Whether one compiled graph serves every policy."""
        return all(isinstance(quantizer, UniformQuantizer) and quantizer.plain for quantizer in self.quantizers)

    def tensor_quantizers(self) -> Iterator[Quantizer]:
        """Yields the quantizers in the order of the space's variables."""
        for quantizer in self.quantizers:
            assert isinstance(quantizer, Quantizer)
            yield quantizer

    # -- forward ----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Runs the graph: images ``[N, C, H, W]`` to the model's output."""
        values: dict[str, Tensor] = {}
        for op in self._operations:
            arguments = [values[source] for source in self._inputs[op.name]] or [x]
            value = self._activate(op, self._compute(op, arguments))
            values[op.name] = value
            for source in self._inputs[op.name]:
                if self._last_use[source] == op.name:
                    values.pop(source, None)
        return value

    def _activate(self, op: Operation, value: Tensor) -> Tensor:
        if self._observed is not None and op.kind not in _ON_GRID_ALREADY:
            self._observe(op, value)
        exact = op.kind in _ON_GRID_ALREADY or (op.kind == "input" and self._exact_input)
        if self.watch is not None and not exact:
            self.watch(op.name, value)
        if self.mode == "float" or exact:
            return value
        return self._fake_quantize(self.space.activations_of[op.name], value)

    def _fake_quantize(self, variable: str, value: Tensor) -> Tensor:
        row = self._row[variable]
        if torch.is_autocast_enabled(value.device.type):  # 16 bits would round codes
            with torch.autocast(value.device.type, enabled=False):
                return self._on_levels(row, value.float())
        return self._on_levels(row, value)

    def _on_levels(self, row: int, value: Tensor) -> Tensor:
        quantizer = self.quantizers[row]
        assert isinstance(quantizer, Quantizer)
        if self.mode == "mixed":
            return quantizer.mix(value, self._shares[row][: len(quantizer.columns)])
        gates = None
        if self._cumulative is not None and len(quantizer.candidates) > 1:
            gates = self._cumulative[row][: len(quantizer.candidates) - 1]
        if torch.compiler.is_compiling() and isinstance(quantizer, UniformQuantizer) and quantizer.plain:
            return quantizer.traced(value, self._chosen.narrow(0, row, 1), gates)
        return quantizer.fake_quantize(value, self._choices[row], gates)

    def _compute(self, op: Operation, arguments: list[Tensor]) -> Tensor:
        x = arguments[0]
        if op.kind in WEIGHTED:
            return self._clamp(op, self._weighted(op, x))
        if op.kind in ("input", "output"):
            return x
        if op.kind == "add":
            return self._clamp(op, x + arguments[1])
        if op.kind == "mul":
            return self._clamp(op, x * arguments[1])
        return free_operation(op, arguments)

    def _weighted(self, op: Operation, x: Tensor) -> Tensor:
        module = self._modules_by_path[op.module or ""]
        weight = self._weight(op)
        if self.mode != "float":
            weight = self._fake_quantize(self.space.weights_of[op.name], weight)
        if isinstance(module, nn.Conv2d):
            x = module._conv_forward(x, weight, module.bias)
        else:
            assert isinstance(module, nn.Linear)
            x = F.linear(x, weight, module.bias)
        return x if op.norm is None else self._normalized(op.norm, x)

    def _normalized(self, path: str, x: Tensor) -> Tensor:
        norm, part = self._modules_by_path[path], distributed.current()
        if norm.training and part is not None and part.parts > 1:
            assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
            return normalize(norm, x, part)
        result: Tensor = norm(x)
        return result

    def _clamp(self, op: Operation, x: Tensor) -> Tensor:
        if op.clamp is None or (op.clamp == "relu" and self._quantizer_is_relu(op)):
            return x
        return CLAMPED_IN_PLACE[op.clamp](x)

    def _quantizer_is_relu(self, op: Operation) -> bool:
        """An unsigned quantizer with zero point 0 clips at zero by itself."""
        return self.mode != "float" and self._observed is None and self._can_be_relu(op)

    def _can_be_relu(self, op: Operation) -> bool:
        quantizer = self._activation_quantizer(op.name)
        return op.clamp == "relu" and quantizer.nonnegative and FLOAT_BITS not in quantizer.candidates

    def adopt(self, other: Supernet) -> None:
        """Takes over weights and quantizers of a supernet of the same model, trained for the same or more candidates.

        Raises:
            PolicyError: a candidate was not trained there; names the variable.
        """
        self.space.require_trained(other.space)
        self.model.load_state_dict(other.model.state_dict())
        for variable, quantizer in zip(self.space.variables, self.quantizers, strict=True):
            theirs = other.quantizers[other._row[variable.name]]
            assert isinstance(quantizer, Quantizer)
            assert isinstance(theirs, Quantizer)
            quantizer.take(theirs)

    def without_gates(self) -> dict[str, Tensor]:
        """Returns the state of weights and quantizers alone."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("gates.")}

    # -- calibration ------------------------------------------------------------------------------------------

    def _observe(self, op: Operation, value: Tensor) -> None:
        assert self._observed is not None
        flat = value.detach().flatten()
        stride = max(1, flat.numel() // _CALIBRATION_VALUES)
        self._observed.setdefault(self.space.activations_of[op.name], []).append(flat[::stride])

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets all quantizers from the float weights and the float activations on a few batches."""
        mode, training = self.mode, self.training
        self.set_float()
        self.eval()
        self._observed = {}
        try:
            for batch in batches:
                self(batch)
            observed = {name: torch.cat(values) for name, values in self._observed.items()}
        finally:
            self._observed = None
            self.mode = mode
            self.train(training)
        for name, quantizer in zip(self._row, self.quantizers, strict=True):
            if isinstance(quantizer, WeightQuantizer):
                quantizer.calibrate(self._weight(self.graph.nodes[self.space[name].members[0]]["operation"]))
            elif isinstance(quantizer, ActivationQuantizer) and name not in self._given:
                quantizer.calibrate(observed[name])

    @torch.no_grad()
    def reestimate_norms(self, batches: Iterable[Tensor]) -> None:
        """Replaces the batch-norm statistics by their average over the given batches, in the current mode."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
        momenta = [norm.momentum for norm in norms]
        training = self.training
        self.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for batch in batches:
            self(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.train(training)

    # -- deployment -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def discretize(self, policy: Mapping[str, int]) -> DiscreteNetwork:
        """Returns the codes, scales and folded normalisation of a policy: the border to deployment."""
        self.set_policy(policy)
        layers: dict[str, LayerNumbers] = {}
        grids: dict[str, ActivationGrid] = {}
        for op in self._operations:
            row = self._row[self.space.activations_of[op.name]]
            grids[op.name] = self._activation_quantizer(op.name).grid(self._choices[row])
            if op.kind in WEIGHTED:
                layers[op.name] = self._layer_numbers(op)
        return DiscreteNetwork(self.graph, dict(policy), layers, grids)

    def _layer_numbers(self, op: Operation) -> LayerNumbers:
        row = self._row[self.space.weights_of[op.name]]
        quantizer = self.quantizers[row]
        assert isinstance(quantizer, WeightQuantizer)
        norm = self._modules_by_path[op.norm] if op.norm is not None else None
        return layer_numbers(quantizer, self._choices[row], self._modules_by_path[op.module or ""], norm)
