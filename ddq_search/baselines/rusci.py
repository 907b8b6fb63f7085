"""The memory-driven rule for microcontrollers: cut what is largest until RAM and flash suffice. No data, no search.

*Activations.* An operation's input and output tensors must fit the RAM together. Starting at 8 bits, passes over the
network alternate, forward and backward, until no pair is too large. Of a pair that is, the tensor of more bits is to be
cut, of equal bits the larger, of equal sizes the output. A forward pass cuts outputs, a backward pass inputs; what the
present pass may not cut is left to the next.

*Weights.* While the constants exceed the flash, one weight tensor is cut: the first in execution order among those
whose share of all weight bytes lies less than `MARGIN` below the largest share; so the last layers, which are as large
and matter more, go later. Bias and requantization parameters count.

Source: Rusci, Capotondi, Benini, Memory-Driven Mixed Low Precision Quantization for Enabling Deep Network Inference on
Microcontrollers, MLSys 2020 (arXiv 1905.13082); the order of cuts is that of the authors' published implementation.
Ours: graphs with branches (all inputs of an operation count), tied tensors, candidates other than 2, 4 and 8 bits, and
a rule that is asked again for a little less while the planned arena, which also holds scratch and skipped tensors,
exceeds the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddq_search.budget import LABELS, show
from ddq_search.cost import FLASH, PEAK_RAM
from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing
from ddq_search.graph import ALIASES, WEIGHTED, ModelGraph, holders, inputs_of, operation, operations
from ddq_search.packing import activation_bytes, weight_bytes
from ddq_search.policy import uniform
from ddq_search.space import SearchSpace

KNOWN = (FLASH, PEAK_RAM)
"""The costs that the rule knows."""
MARGIN = 0.05
"""Share of all weight bytes within which an earlier layer is cut before the largest (δ of the paper)."""


@dataclass(frozen=True)
class Tensor:
    """An activation tensor: its variable and its number of scalars."""

    variable: str
    elements: int


@dataclass(frozen=True)
class Pair:
    """What one operation holds in RAM: its distinct input tensors and its output."""

    operation: str
    inputs: tuple[Tensor, ...]
    output: Tensor

    def size_bytes(self, policy: Mapping[str, int]) -> int:
        """Returns the bytes of all of them."""
        return sum(activation_bytes(t.elements, policy[t.variable]) for t in (*self.inputs, self.output))


def require_known_costs(budgets: Mapping[str, float]) -> None:
    """Returns if the rule can do something about the budgets.

    Raises:
        BudgetError: there are budgets, and neither is flash or peak RAM.
    """
    if budgets and not set(KNOWN) & set(budgets):
        asked = " and ".join(LABELS[cost] for cost in budgets)
        raise BudgetError(
            f"rusci: the memory-driven rule knows flash and peak RAM only, not {asked}; "
            "add a flash or peak-RAM budget, or take another method"
        )


def memory_driven(pricing: Pricing, limits: Mapping[str, float]) -> dict[str, int] | None:
    """Returns the policy that the rule cuts down to, or None when it ends before every limit is kept.

    Limits other than flash and peak RAM play no part in the cuts; a policy beyond one of them is not returned.
    """
    graph, space = pricing.graph, pricing.tables.space
    pairs = activation_pairs(graph, space)
    allowed = limits.get(PEAK_RAM, float("inf"))
    while True:
        policy: dict[str, int] | None = uniform(space, 8, 8)
        assert policy is not None
        policy = cut_activations(pairs, space, policy, allowed)
        if policy is not None and FLASH in limits:
            policy = cut_weights(pricing, policy, limits[FLASH])
        if policy is None:
            return None
        excess = pricing.price(policy)[PEAK_RAM] - limits.get(PEAK_RAM, float("inf"))
        if excess <= 0:
            return policy if pricing.meets(policy, limits) else None
        fullest = max((pair.size_bytes(policy) for pair in pairs), default=0)
        allowed = min(allowed - excess, fullest - 1.0)  # at least one more cut


def shortfall(pricing: Pricing, budgets: Mapping[str, float]) -> str:
    """Returns why the rule ends without a policy within the budgets, and what to do."""
    known = {cost: limit for cost, limit in budgets.items() if cost in KNOWN}
    policy = memory_driven(pricing, known)
    if policy is None:
        asked = " and ".join(f"{LABELS[cost]} ≤ {show(cost, limit)}" for cost, limit in known.items())
        return f"its cuts end before {asked} is reached; take ilp, which weighs all tensors at once"
    price = pricing.price(policy)
    beyond = [
        f"{LABELS[c]} {show(c, price[c])} instead of {show(c, budgets[c])}" for c in budgets if price[c] > budgets[c]
    ]
    return (
        f"cut down to its memory budgets, the network has {', '.join(beyond)}, which the rule does not know; take ilp"
    )


def activation_pairs(graph: ModelGraph, space: SearchSpace) -> list[Pair]:
    """Returns the pairs of all operations that run code and read something, in execution order."""
    holder, pairs = holders(graph), []
    for op in operations(graph):
        sources = list(dict.fromkeys(holder[name] for name in inputs_of(graph, op.name)))
        if sources and op.kind not in ALIASES:
            inputs = [Tensor(space.activations_of[name], operation(graph, name).output_elements) for name in sources]
            pairs.append(Pair(op.name, tuple(inputs), Tensor(space.activations_of[op.name], op.output_elements)))
    return pairs


def cut_activations(
    pairs: Sequence[Pair], space: SearchSpace, policy: Mapping[str, int], limit_bytes: float
) -> dict[str, int] | None:
    """Returns a policy whose every pair fits, or None when the tensors of one cannot be cut that far."""
    result = dict(policy)
    forward = True
    while any(pair.size_bytes(result) > limit_bytes for pair in pairs):
        for pair in pairs if forward else reversed(pairs):
            while pair.size_bytes(result) > limit_bytes:
                chosen = _to_cut(pair, space, result)
                if chosen is None:
                    return None
                if forward != (chosen == pair.output.variable):
                    break  # the next pass cuts it
                result[chosen] = _lower(space, result, chosen)
        forward = not forward
    return result


def _to_cut(pair: Pair, space: SearchSpace, policy: Mapping[str, int]) -> str | None:
    """Of the tensors that can be cut: most bits first, then most bytes, then the output."""
    tensors = [pair.output, *pair.inputs]
    able = [tensor for tensor in tensors if policy[tensor.variable] > space[tensor.variable].candidates[0]]
    if not able:
        return None
    return max(able, key=lambda t: (policy[t.variable], activation_bytes(t.elements, policy[t.variable]))).variable


def cut_weights(pricing: Pricing, policy: Mapping[str, int], limit_bytes: float) -> dict[str, int] | None:
    """Returns a policy whose constants fit the flash, or None when they do not even at the fewest bits."""
    space, result = pricing.tables.space, dict(policy)
    shapes: dict[str, tuple[int, int]] = {}
    for op in operations(pricing.graph):
        if op.kind in WEIGHTED:
            shapes.setdefault(space.weights_of[op.name], (op.rows, op.row_length))
    while pricing.tables.price(result)[FLASH] > limit_bytes:
        sizes = {name: weight_bytes(*shape, result[name]) for name, shape in shapes.items()}
        chosen = next_weights(sizes, [name for name in sizes if result[name] > space[name].candidates[0]])
        if chosen is None:
            return None
        result[chosen] = _lower(space, result, chosen)
    return result


def next_weights(sizes: Mapping[str, int], able: Sequence[str]) -> str | None:
    """Returns the weight tensor to cut next, or None when none can be.

    Args:
        sizes: tensor → bytes, in execution order.
        able: the tensors that can be cut.

    >>> next_weights({"a": 40, "b": 958, "c": 1000}, ["a", "b", "c"])
    'b'
    """
    total = sum(sizes.values())
    shares = {name: sizes[name] / total for name in sizes if name in able}
    return next((name for name, share in shares.items() if share > max(shares.values()) - MARGIN), None)


def _lower(space: SearchSpace, policy: Mapping[str, int], name: str) -> int:
    """The candidate below the present one: half of the bits where the candidates are 2, 4 and 8."""
    candidates = space[name].candidates
    return candidates[candidates.index(policy[name]) - 1]
