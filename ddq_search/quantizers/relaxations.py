"""Relaxed choices for networks that mix their candidates instead of sampling one.

A relaxation gives every variable two points on a simplex: *shares*, with which the forward pass weighs the columns of
`Quantizer.mix`, and *probabilities* over candidate precisions, with which costs are contracted.

=================  =====================================================================================
`Softmax`          EdMIPS (Cai and Vasconcelos, CVPR 2020); DQSS (Li et al., 2024), whose columns are strategies
`Fractional`       FracBits (Yang and Jin, AAAI 2021): one real position, the two candidates beside it are mixed
`HardConcrete`     Bayesian Bits (van Baalen et al., NeurIPS 2020): nested stochastic gates 2 → 4 → 8
=================  =====================================================================================

Legend: V variables, C columns of the widest variable, K candidates of the widest variable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddq_search.quantizers.gates import pattern_scores, thermometer


class Relaxation(nn.Module, ABC):
    """Choices of all variables.

    Attributes:
        exists: ``[V, C]``, which columns a variable has.
        of_candidate: ``[V, C, K]`` float64, 1 where a column stands for a candidate precision.
    """

    exists: Tensor
    of_candidate: Tensor

    def __init__(self, columns: Sequence[Sequence[int]]) -> None:
        """Takes, for every variable, the candidate index of each of its columns."""
        super().__init__()
        width, candidates = max(map(len, columns)), 1 + max(max(row) for row in columns)
        exists = torch.zeros(len(columns), width, dtype=torch.bool)
        of_candidate = torch.zeros(len(columns), width, candidates, dtype=torch.float64)
        for row, entries in enumerate(columns):
            exists[row, : len(entries)] = True
            of_candidate[row, range(len(entries)), list(entries)] = 1
        self.register_buffer("exists", exists)
        self.register_buffer("of_candidate", of_candidate)

    @abstractmethod
    def shares(self, noise: Tensor) -> Tensor:
        """Returns ``[V, C]``, rows sum to 1, differentiable; ``noise`` ``[V, C]`` is uniform in (0, 1)."""

    def column_probabilities(self) -> Tensor:
        """Returns ``[V, C]``, what the shares are without noise."""
        return self.shares(torch.full(self.exists.shape, 0.5, device=self.exists.device))

    def probabilities(self) -> Tensor:
        """Returns ``[V, K]`` float64, differentiable: what costs are contracted with."""
        columns = self.column_probabilities().double()
        return torch.einsum("vc,vck->vk", columns, self.of_candidate)

    def scores(self) -> Tensor:
        """Returns ``[V, K]`` float64: the greater, the rather a candidate is chosen."""
        return self.probabilities().detach().clamp_min(1e-9).log()

    def advance(self, fraction: float) -> None:
        """Told before each step which fraction of the training is done, in [0, 1)."""

    @torch.no_grad()
    def project(self) -> None:
        """Puts parameters back where they are allowed, after each step."""


class Softmax(Relaxation):
    """One logit per column. The temperature falls from 1 to ``coldest``, so the mixture ends near one choice."""

    def __init__(self, columns: Sequence[Sequence[int]], coldest: float = 1.0) -> None:
        super().__init__(columns)
        self.logits = nn.Parameter(torch.zeros(self.exists.shape))
        self.coldest, self.temperature = coldest, 1.0

    def shares(self, noise: Tensor) -> Tensor:
        """As the base class says; no noise enters."""
        return (self.logits / self.temperature).masked_fill(~self.exists, -torch.inf).softmax(1)

    def advance(self, fraction: float) -> None:
        """As the base class says."""
        self.temperature = self.coldest**fraction


class Fractional(Relaxation):
    """One position per variable on the line of its candidates; the share of a candidate is a hat around it."""

    def __init__(self, columns: Sequence[Sequence[int]]) -> None:
        super().__init__(columns)
        self.register_buffer("last", self.exists.sum(1).to(torch.get_default_dtype()) - 1, persistent=False)
        last = self.get_buffer("last")
        self.position = nn.Parameter((last - 0.25).clamp_min(0))

    def shares(self, noise: Tensor) -> Tensor:
        """As the base class says; no noise enters."""
        places = torch.arange(self.exists.shape[1], device=self.position.device)
        return (1 - (self.position[:, None] - places).abs()).clamp_min(0)

    def scores(self) -> Tensor:
        """As the base class says: the nearer, the rather."""
        places = torch.arange(self.of_candidate.shape[2], device=self.position.device)
        return -(self.position.detach()[:, None] - places).abs().double()

    @torch.no_grad()
    def project(self) -> None:
        """Keeps positions between the narrowest and the widest candidate."""
        self.position.copy_(torch.minimum(self.position.clamp_min(0), self.get_buffer("last")))

    @torch.no_grad()
    def rounded(self, offset: float) -> Tensor:
        """Returns the candidate index ``[V]`` of every variable, fractions from ``offset`` on rounded up."""
        return torch.minimum((self.position + 1 - offset).floor(), self.get_buffer("last")).long()


class HardConcrete(Relaxation):
    """Gates of Bayesian Bits: gate i opens candidate i over candidate i − 1, stretched to reach 0 and 1 exactly.

    Constants as in Louizos et al., "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
    """

    LOW, HIGH, TEMPERATURE, START = -0.1, 1.1, 2 / 3, 2.0

    def __init__(self, columns: Sequence[Sequence[int]]) -> None:
        super().__init__(columns)
        self.log_alpha = nn.Parameter(torch.full((len(columns), self.exists.shape[1] - 1), self.START))

    def shares(self, noise: Tensor) -> Tensor:
        """As the base class says; sampled gates."""
        uniform = noise[:, 1:].clamp(1e-6, 1 - 1e-6)
        logistic = uniform.log() - (1 - uniform).log()
        gates = torch.sigmoid((logistic + self.log_alpha) / self.TEMPERATURE)
        return self._thermometer((gates * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1))

    def column_probabilities(self) -> Tensor:
        """Returns the probabilities ``[V, C]`` that gates are not closed, read as a thermometer."""
        return self._thermometer(self._not_closed())

    @torch.no_grad()
    def scores(self) -> Tensor:
        """As the base class says: the likeliest gate pattern of every candidate, each gate by itself."""
        return pattern_scores(self._not_closed(), self.exists[:, 1:])

    def _not_closed(self) -> Tensor:
        return torch.sigmoid(self.log_alpha - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))

    def _thermometer(self, gates: Tensor) -> Tensor:
        return thermometer((gates * self.exists[:, 1:]).cumprod(1))
