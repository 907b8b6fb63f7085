"""Several algorithms for one tensor: the strategies of DQSS, one of which is chosen per tensor.

A strategy is a (family, bitwidth) pair. While searching, `mix` weighs all strategies; afterwards every bitwidth has the
strategy that `settle` gave it, and the quantizer behaves like any other.

Source: Li, Yan, Chen, "Differentiable Quantization Strategy Search", arXiv 2404.08010.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from ddq_search.discrete import Point
from ddq_search.precision import ActivationGrid, weight_code_range
from ddq_search.quantizers.contract import ActivationQuantizer, Quantizer, WeightNumbers, WeightQuantizer
from ddq_search.quantizers.mixing import MixPasses
from ddq_search.quantizers.uniform import UniformActivations, UniformQuantizer, UniformWeights


class StrategyQuantizer(Quantizer):
    """What strategies of weights and of activations share.

    Attributes:
        names: family of every branch; branches are ordered by candidate.
        branches: one quantizer per strategy, each with one candidate.
        chosen: ``[K]`` int64, the branch that stands for each candidate.
    """

    chosen: Tensor

    def __init__(self, candidates: tuple[int, ...], branches: Sequence[Sequence[tuple[str, Quantizer]]]) -> None:
        """Takes the named branches of every candidate."""
        super().__init__(candidates)
        self.names = tuple(name for group in branches for name, _ in group)
        self.branches = nn.ModuleList([branch for group in branches for _, branch in group])
        self._columns = tuple(k for k, group in enumerate(branches) for _ in group)
        firsts = [self._columns.index(k) for k in range(len(candidates))]
        self.register_buffer("chosen", torch.tensor(firsts, dtype=torch.int64))

    @property
    def columns(self) -> tuple[int, ...]:
        """As the contract says: one per strategy."""
        return self._columns

    @torch.no_grad()
    def settle(self, scores: Tensor | None = None) -> None:
        """Lets the strategy of greatest score ``[strategies]`` stand for each candidate."""
        assert scores is not None, "strategies are chosen by scores"
        for choice in range(len(self.candidates)):
            mine = [column for column, of in enumerate(self._columns) if of == choice]
            self.chosen[choice] = max(mine, key=lambda column: float(scores[column]))

    def choose(self, name: str) -> None:
        """Lets a family stand for every candidate that has it."""
        for column, (choice, own) in enumerate(zip(self._columns, self.names, strict=True)):
            if own == name:
                self.chosen[choice] = column

    def strategy(self, choice: int) -> str:
        """Returns the family that stands for a candidate."""
        return self.names[int(self.chosen[choice])]

    def _branch(self, choice: int) -> Quantizer:
        branch = self.branches[int(self.chosen[choice])]
        assert isinstance(branch, Quantizer)
        return branch

    def _all(self) -> Iterator[Quantizer]:
        for branch in self.branches:
            assert isinstance(branch, Quantizer)
            branch.gradient_share = self.gradient_share
            yield branch

    def calibrate(self, sample: Tensor) -> None:
        """As the contract says."""
        for branch in self._all():
            branch.calibrate(sample)

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says; the chosen strategies are what gates choose among."""
        if cumulative is None:
            branch = self._branch(choice)
            branch.gradient_share = self.gradient_share
            return branch.fake_quantize(x, 0)
        values = [self._branch(k).fake_quantize(x, 0) for k in range(len(self.candidates))]
        differences = torch.stack([(high - low).detach() for low, high in itertools.pairwise(values)])
        weights = cumulative.to(x.dtype).reshape(-1, *[1] * x.ndim)
        return values[choice] + ((weights - weights.detach()) * differences).sum(0)

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """As the contract says; uniform strategies whose steps are relative to one statistic in one pass."""
        fused: list[tuple[UniformQuantizer, Tensor]] = []
        total: Tensor | None = None
        for branch, share in zip(self._all(), shares.unbind(), strict=True):
            if _fits_one_pass(branch):
                fused.append((branch, share))
            else:
                part = share.to(x.dtype) * branch.fake_quantize(x, 0)
                total = part if total is None else total + part
        if fused:
            part = MixPasses.apply(
                x, torch.cat([branch.log_steps for branch, _ in fused]), fused[0][0].statistic(x),
                torch.stack([share for _, share in fused]), tuple(branch.grids[0] for branch, _ in fused),
                self.gradient_share,
            )  # fmt: skip
            total = part if total is None else total + part
        assert total is not None
        return total

    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        self._bits(choice)
        return self._branch(choice).quantize(x, 0)

    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        return self._branch(choice).levels(x, 0)

    @torch.no_grad()
    def take(self, other: StrategyQuantizer) -> None:
        """As the contract says."""
        for choice, bits in enumerate(self.candidates):
            theirs = other.candidates.index(bits)
            mine = [column for column, of in enumerate(self._columns) if of == choice]
            there = [column for column, of in enumerate(other.columns) if of == theirs]
            for column, source in zip(mine, there, strict=True):
                branch, trained = self.branches[column], other.branches[source]
                assert isinstance(branch, Quantizer)
                branch.take(trained)
            self.chosen[choice] = mine[there.index(int(other.chosen[theirs]))]


class StrategyWeights(StrategyQuantizer, WeightQuantizer):
    """Strategies of a weight tensor.

    Attributes:
        tabled: weights are stored with their levels whatever the strategy, because some strategy needs it.
        points: further points that are stored whatever the strategy, for the same reason.
    """

    tabled: bool = False
    points: int = 0

    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says."""
        branch = self._branch(choice)
        assert isinstance(branch, WeightQuantizer)
        numbers, bits = branch.numbers(weight, 0), self._bits(choice)
        return with_table(numbers, bits) if self.tabled else with_points(numbers, bits, self.points)


class StrategyActivations(StrategyQuantizer, ActivationQuantizer):
    """Strategies of an activation tensor."""

    def __init__(
        self, candidates: tuple[int, ...], branches: Sequence[Sequence[tuple[str, Quantizer]]], nonnegative: bool
    ) -> None:
        super().__init__(candidates, branches)
        self.nonnegative = nonnegative

    def grid(self, choice: int) -> ActivationGrid:
        """As the contract says."""
        self._bits(choice)
        branch = self._branch(choice)
        assert isinstance(branch, ActivationQuantizer)
        return branch.grid(0)

    def set_grid(self, scale: float, zero_point: int) -> None:
        """As the contract says."""
        for branch in self._all():
            assert isinstance(branch, ActivationQuantizer)
            branch.set_grid(scale, zero_point)


def _fits_one_pass(branch: Quantizer) -> TypeGuard[UniformQuantizer]:
    """Whether a strategy has the values, the gradients and the statistic of the family `uniform`."""
    kind = UniformWeights if isinstance(branch, WeightQuantizer) else UniformActivations
    if not isinstance(branch, kind) or type(branch).statistic is not kind.statistic:
        return False
    return branch.plain and branch.grids[0] is not None


def with_table(numbers: WeightNumbers, bits: int) -> WeightNumbers:
    """Returns uniform weights as indices into a table of their levels; weights that have one stay as they are.

    >>> numbers = with_table(WeightNumbers(np.array([[-1, 0, 1]], np.int32), np.ones(1)), 2)
    >>> numbers.codes.tolist(), numbers.codebook.tolist()
    ([[0, 1, 2]], [-1, 0, 1, 1])
    """
    if numbers.codebook is not None:
        return numbers
    low, high = weight_code_range(bits)
    levels = np.array([*range(low, high + 1), high], np.int8)
    return WeightNumbers((numbers.codes - low).astype(np.int32), numbers.scale, levels, numbers.points)


def with_points(numbers: WeightNumbers, bits: int, points: int) -> WeightNumbers:
    """Returns the weights with so many further points, those that are missing being left out of every channel."""
    empty = Point(np.zeros(numbers.codes.shape, np.int8), bits, np.zeros(len(numbers.codes), np.int16))
    missing = points - len(numbers.points)
    return replace(numbers, points=(*numbers.points, *[empty] * missing)) if missing > 0 else numbers
