"""What is searched: one categorical variable per weight tensor and per group of tied activation tensors.

A variable's name tells what it is: ``weights/<layer>`` or ``activations/<first tensor of the group>``. A choice is
an index into the variable's candidate bitwidths, ascending.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ddq_search.errors import PolicyError, SpaceError
from ddq_search.graph import WEIGHTED, ModelGraph, Operation, operations, tensor_groups
from ddq_search.precision import INTERFACE_BITS

Role = Literal["weights", "activations"]


@dataclass(frozen=True)
class Variable:
    """One decision: the precision of a weight tensor, or of a group of activation tensors.

    Attributes:
        name: ``weights/<layer>`` or ``activations/<tensor>``.
        role: which of the two.
        candidates: bitwidths to choose from, ascending; one candidate means nothing is left to choose.
        members: the operations that use this weight tensor, or that produce a tensor of this group.
    """

    name: str
    role: Role
    candidates: tuple[int, ...]
    members: tuple[str, ...]

    @property
    def key(self) -> str:
        """The layer's or tensor's name without the role."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class Rule:
    """Restricts the candidates of every variable whose name matches the shell-style pattern.

    ``pattern`` is matched against the variable's full name (``weights/layer1.*``) and against its key, so ``conv1``
    pins both the weights and the output of ``conv1``.
    """

    pattern: str
    candidates: tuple[int, ...]

    def matches(self, variable: Variable) -> bool:
        """Whether this rule speaks about the variable."""
        return any(fnmatch.fnmatchcase(name, self.pattern) for name in (variable.name, variable.key))


class Legality(Protocol):
    """What a device can execute."""

    def legal_weight_bits(self, op: Operation) -> tuple[int, ...]:
        """Bitwidths of weights that the device executes for this layer."""

    def legal_activation_bits(self, op: Operation) -> tuple[int, ...]:
        """Bitwidths that the device can write for this operation's output."""


@dataclass(frozen=True)
class SearchSpace:
    """All variables, in execution order, and which variable each tensor and layer belongs to."""

    variables: tuple[Variable, ...]
    weights_of: Mapping[str, str]
    """operation → name of its weight variable"""
    activations_of: Mapping[str, str]
    """operation → name of its output tensor's variable"""
    unused_rules: tuple[str, ...] = ()
    """patterns that matched nothing"""
    codebook_weights: frozenset[str] = frozenset()
    """names of the weight variables whose levels are non-uniform: their weights are stored with a codebook"""
    further_points: Mapping[str, int] = field(default_factory=dict)
    """weight variable → number of further points of its multipoint weights, stored at the same bits"""

    def __post_init__(self) -> None:
        weights = {variable.name for variable in self.variables if variable.role == "weights"}
        for names, what in ((self.codebook_weights, "a codebook"), (self.further_points, "further points")):
            foreign = sorted(set(names) - weights)
            if foreign:
                raise SpaceError(f"{foreign[0]!r} has {what} but is no weight variable of the search space")

    def __getitem__(self, name: str) -> Variable:
        found = self._by_name.get(name)
        if found is None:
            raise SpaceError(f"no variable {name!r} in the search space")
        return found

    @functools.cached_property
    def _by_name(self) -> Mapping[str, Variable]:
        return {variable.name: variable for variable in self.variables}

    @property
    def searched(self) -> tuple[Variable, ...]:
        """The variables that have more than one candidate."""
        return tuple(variable for variable in self.variables if len(variable.candidates) > 1)

    def require_trained(self, trained: SearchSpace) -> None:
        """Returns where every candidate is one of another space, whose supernet was trained.

        Raises:
            PolicyError: a candidate was not trained there; names the variable.
        """
        for variable in self.variables:
            known = trained[variable.name].candidates
            new = sorted(set(variable.candidates) - set(known))
            if new:
                raise PolicyError(
                    f"{variable.name!r} was not trained at {new} bits, only at {list(known)}; search again, or cut "
                    "the candidates (space.weight_bits, space.activation_bits, pins)"
                )


def build_space(
    graph: ModelGraph,
    device: Legality,
    *,
    weight_bits: Sequence[int] = (2, 4, 8),
    activation_bits: Sequence[int] = (2, 4, 8),
    rules: Iterable[Rule] = (),
) -> SearchSpace:
    """Returns the search space of a model on a device: the wished candidates cut down to what the device executes.

    The network's input and output tensors stay at 8 bits: they are its interface. Everything else, the first and
    last layers included, is searched unless a rule pins it. Later rules narrow what earlier ones left.

    Raises:
        SpaceError: no candidate is left for a layer or tensor.
    """
    groups = tensor_groups(graph)
    interface = {groups[op.name] for op in operations(graph) if op.kind in ("input", "output")}
    wished: dict[str, Variable] = {}
    weights_of: dict[str, str] = {}
    activations_of: dict[str, str] = {}
    owner: dict[str, str] = {}
    for op in operations(graph):
        if op.kind in WEIGHTED:
            name = f"weights/{owner.setdefault(op.module or op.name, op.name)}"
            weights_of[op.name] = name
            _narrow(wished, name, "weights", op, weight_bits, device.legal_weight_bits(op))
        group = groups[op.name]
        name = f"activations/{group}"
        activations_of[op.name] = name
        candidates = (INTERFACE_BITS,) if group in interface else activation_bits
        _narrow(wished, name, "activations", op, candidates, device.legal_activation_bits(op))
    variables, unused = _apply(tuple(rules), wished)
    return SearchSpace(variables, weights_of, activations_of, unused)


def _narrow(
    wished: dict[str, Variable], name: str, role: Role, op: Operation, bits: Sequence[int], legal: Sequence[int]
) -> None:
    before = wished.get(name)
    allowed = before.candidates if before else tuple(sorted(set(bits)))
    left = tuple(b for b in allowed if b in legal)
    if not left:
        raise SpaceError(
            f"{role} of {op.name!r} ({op.kind}): none of the candidates {list(allowed)} is executed by the device, "
            f"which offers {list(legal)}; change the candidates or the device"
        )
    wished[name] = Variable(name, role, left, (*(before.members if before else ()), op.name))


def _apply(rules: tuple[Rule, ...], wished: Mapping[str, Variable]) -> tuple[tuple[Variable, ...], tuple[str, ...]]:
    used: set[Rule] = set()
    result = []
    for variable in wished.values():
        for rule in rules:
            if rule.matches(variable):
                used.add(rule)
                left = tuple(b for b in variable.candidates if b in rule.candidates)
                if not left:
                    raise SpaceError(
                        f"rule {rule.pattern!r} leaves no candidate for {variable.name!r}: it allows "
                        f"{sorted(rule.candidates)}, the variable has {list(variable.candidates)}"
                    )
                variable = Variable(variable.name, variable.role, left, variable.members)
        result.append(variable)
    return tuple(result), tuple(rule.pattern for rule in rules if rule not in used)
