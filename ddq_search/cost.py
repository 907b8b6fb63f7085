"""What a policy costs: factors, and the one line that contracts them with probabilities.

A cost model returns *factors*: small float64 tables over the one to three variables that a cost depends on.
Contracted with the variables' probabilities they give the expected cost; at one-hot probabilities the same line is
the price of a policy. Peak RAM is the maximum over the steps of the schedule of such sums.

Legend: V variables, C candidates of the widest variable, F factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddq_search.arithmetic import Arithmetic
from ddq_search.contraction import Contraction, merged
from ddq_search.errors import CostError
from ddq_search.graph import ModelGraph
from ddq_search.space import Legality, SearchSpace

LATENCY, FLASH, PEAK_RAM = "latency_s", "flash_bytes", "peak_ram_bytes"
BIT_OPERATIONS, ENERGY = "bit_operations", "energy_j"
PRICED_AT_ONCE = (256, 2048)
"""Fewest and most policies in one block of `CostTables.price_many`; bounds memory, not results."""
PRICED_CHOICES = 2**18
"""Choices, policies x variables, in such a block: what a processor's cache holds with the entries they lead to."""
COSTS = (LATENCY, FLASH, PEAK_RAM, BIT_OPERATIONS, ENERGY)


@dataclass(frozen=True)
class Factor:
    """A table of costs over the choices of at most three distinct variables.

    Attributes:
        cost: one of `COSTS`.
        operation: the operation the cost belongs to.
        part: what it pays for: ``compute``, ``output``, ``convert``, ``call``, ``weights``, ``tensor``, ``scratch`` …
        variables: names of the variables, one per axis of the table.
        table: float64, one axis per variable, indexed by candidate; finite and ≥ 0. Shape ``()`` for a constant.
        step: for `PEAK_RAM`, the index of the schedule step in which these bytes are live.
    """

    cost: str
    operation: str
    part: str
    variables: tuple[str, ...]
    table: NDArray[np.float64]
    step: int | None = None


def keeps(price: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether a price exceeds no limit.

    >>> keeps({"flash_bytes": 40.0, "latency_s": 2.0}, {"flash_bytes": 40.0})
    True
    """
    return all(price[cost] <= limit for cost, limit in limits.items())


class CostModel(Legality, Protocol):
    """What the core needs to know of a device."""

    @property
    def name(self) -> str:
        """The profile's name."""

    @property
    def arithmetic(self) -> Arithmetic:
        """Rounding of the runtime that this model prices, see `ddq_search.arithmetic`."""

    @property
    def calibration(self) -> str:
        """One line that says how far the latency can be trusted: ``calibrated: …`` or ``uncalibrated: …``."""

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        """Returns all factors of a model; raises `CostError` for an operation or precision without a price."""

    def arena_bytes(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> int:
        """Returns the bytes of the arena that the planner lays out for a policy (variable name → bitwidth)."""


class CostTables:
    """Compiled factors: prices and expectations of one model on one device.

    Built once; thereafter `expected` is a handful of tensor operations, differentiable in the probabilities.
    """

    def __init__(self, space: SearchSpace, factors: Sequence[Factor]) -> None:
        self.space = space
        self.factors = tuple(factors)
        self.costs = tuple(cost for cost in COSTS if any(f.cost == cost for f in factors))
        index = {variable.name: i for i, variable in enumerate(space.variables)}
        self._width = max(len(variable.candidates) for variable in space.variables)
        self._sizes = {variable.name: len(variable.candidates) for variable in space.variables}
        self._single: dict[str, Contraction] = {}
        self._summed: dict[str, Contraction] = {}
        for factor in self.factors:
            self._check(factor)
        for cost in self.costs:
            tables = [(factor.variables, factor.table) for factor in self.factors if factor.cost == cost]
            self._single[cost] = Contraction(tables, index, self._width)
            self._summed[cost] = Contraction(merged(tables), index, self._width)
        steps = torch.tensor([factor.step or 0 for factor in self.factors if factor.cost == PEAK_RAM])
        self._steps = steps[self._single[PEAK_RAM].grouped] if PEAK_RAM in self.costs else steps

    def _check(self, factor: Factor) -> None:
        unknown = [name for name in factor.variables if name not in self._sizes]
        if unknown or len(set(factor.variables)) != len(factor.variables):
            raise CostError(
                f"{factor.cost} of {factor.operation!r}: variables {factor.variables} are unknown or repeated"
            )
        expected = tuple(self._sizes[name] for name in factor.variables)
        if factor.table.shape != expected or len(expected) > 3:
            raise CostError(f"{factor.cost} of {factor.operation!r}: table {factor.table.shape}, expected {expected}")
        if not np.isfinite(factor.table).all() or (factor.table < 0).any():
            raise CostError(f"{factor.cost} of {factor.operation!r}: the table holds negative or non-finite entries")

    def contributions(self, cost: str, probabilities: torch.Tensor) -> torch.Tensor:
        """Returns each factor's expected value ``[..., F]`` for probabilities ``[..., V, C]`` (float64, padded)."""
        order = torch.argsort(self._single[cost].grouped).to(probabilities.device)
        return self._single[cost].values(probabilities)[..., order]

    def step_sums(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Returns the expected live bytes at every step of the schedule, ``[..., steps]``."""
        return self._by_step(self._single[PEAK_RAM].values(probabilities))

    def _by_step(self, values: torch.Tensor) -> torch.Tensor:
        sums = values.new_zeros(*values.shape[:-1], int(self._steps.max()) + 1)
        return sums.index_add(-1, self._steps.to(values.device), values)

    def expected(self, probabilities: torch.Tensor, costs: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Returns the expected cost ``[...]`` by name for probabilities ``[..., V, C]``, of all costs or some.

        Peak RAM: hard maximum forward, gradient of a log-sum-exp.
        """
        result = {}
        for cost in self.costs if costs is None else costs:
            if cost == PEAK_RAM:
                result[cost] = _smooth_gradient_max(self.step_sums(probabilities))
            else:
                result[cost] = self._summed[cost].values(probabilities).sum(-1)
        return result

    def one_hot(self, policy: Mapping[str, int]) -> torch.Tensor:
        """Returns the probabilities ``[V, C]`` that put all mass on a policy (variable name → bitwidth)."""
        rows = torch.zeros(len(self.space.variables), self._width, dtype=torch.float64)
        for row, variable in enumerate(self.space.variables):
            if policy.get(variable.name) not in variable.candidates:
                raise CostError(
                    f"{variable.name!r}: {policy.get(variable.name)} bits is not among {list(variable.candidates)}"
                )
            rows[row, variable.candidates.index(policy[variable.name])] = 1.0
        return rows

    def price(self, policy: Mapping[str, int]) -> dict[str, float]:
        """Returns the cost of a policy (variable name → bitwidth): `expected` at one-hot, nothing else."""
        return {cost: float(value) for cost, value in self.expected(self.one_hot(policy)).items()}

    def price_many(
        self, choices: NDArray[np.integer], costs: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Returns the costs ``[N]`` of many policies by name: `price` of each, by looking tables up.

        Args:
            choices: ``[N, V]`` index of the chosen candidate of every variable, in the order of the search space.
            costs: which costs; default: all.

        Raises:
            CostError: a choice is not the index of a candidate.
        """
        sizes = np.array([len(variable.candidates) for variable in self.space.variables])
        if choices.ndim != 2 or choices.shape[1] != len(sizes) or (choices < 0).any() or (choices >= sizes).any():
            raise CostError(f"choices {choices.shape} are not [N, {len(sizes)}] indices of candidates")
        wanted = self.costs if costs is None else tuple(costs)
        certain = torch.from_numpy(np.ascontiguousarray(choices, dtype=np.int64))
        fewest, most = PRICED_AT_ONCE
        size = min(most, max(fewest, PRICED_CHOICES // len(sizes)))
        parts = [self._look_up(block, wanted) for block in certain.split(size)]
        return {cost: torch.cat([part[cost] for part in parts]).numpy() for cost in wanted}

    def _look_up(self, choices: torch.Tensor, costs: Sequence[str]) -> dict[str, torch.Tensor]:
        result = {cost: self._summed[cost].entries(choices).sum(-1) for cost in costs if cost != PEAK_RAM}
        if PEAK_RAM in costs:
            result[PEAK_RAM] = self._by_step(self._single[PEAK_RAM].entries(choices)).amax(-1)
        return result


def _smooth_gradient_max(sums: torch.Tensor) -> torch.Tensor:
    """Maximum over the last axis; its gradient is spread over near-maximal entries (softmax at 2 % of the maximum)."""
    hard = sums.amax(-1).detach()
    temperature = (0.02 * hard).clamp_min(1e-30)
    smooth = temperature * torch.logsumexp(sums / temperature[..., None], -1)
    return hard + (smooth - smooth.detach())
