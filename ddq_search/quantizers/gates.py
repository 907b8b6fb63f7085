"""Ordered gates: a categorical choice per variable, written as a thermometer.

Gate i of a variable opens the step from candidate i−1 to candidate i. Its probability is the hard sigmoid
``(ĝ + 1)/2`` clipped to [0, 1], whose derivative is, up to the factor ½, the straight-through window ``1[|ĝ| ≤ 1]``
of the paper's hard gate ``H(ĝ)``. Gates are ordered: the candidate is at least i with probability
``c_i = g_1 … g_i``, hence ``p_i = c_i − c_{i+1}``.

A family of gate sets, one per point of the front, shares a common part, so that what one set learns about a layer's
sensitivity reaches the others.

Legend: S sets, V variables, C candidates of the widest variable.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_OPEN_LIMIT = 0.96
"""|ĝ| stays below this, so every gate keeps a gradient."""


class Gates(nn.Module):
    """Gate parameters of all variables and sets.

    Attributes:
        shared: ``[V, C − 1]``, added to every set.
        own: S parameters ``[V, C − 1]``, separate so that an optimizer leaves inactive sets alone.
    """

    exists: Tensor

    def __init__(self, candidates: list[int], sets: int, start: float = 0.6) -> None:
        """Creates closed-to-open gates.

        Args:
            candidates: number of candidates of each variable.
            sets: number of gate sets.
            start: initial ĝ of every gate, in [−1, 1]; positive starts near the widest candidate.
        """
        super().__init__()
        width = max(max(candidates), 2)
        exists = torch.zeros(len(candidates), width - 1, dtype=torch.bool)
        for row, count in enumerate(candidates):
            exists[row, : count - 1] = True
        self.register_buffer("exists", exists)
        self.shared = nn.Parameter(torch.full(exists.shape, start))
        self.own = nn.ParameterList([nn.Parameter(torch.zeros(exists.shape)) for _ in range(sets)])

    @property
    def sets(self) -> int:
        """Number of gate sets."""
        return len(self.own)

    def cumulative(self, index: int) -> Tensor:
        """Returns ``c`` ``[V, C − 1]`` of one set: probability that the candidate is at least 1, 2, …"""
        opened = ((self.shared + self.own[index] + 1) / 2).clamp(0, 1)
        return (opened * self.exists).cumprod(1)

    @staticmethod
    def probabilities(cumulative: Tensor) -> Tensor:
        """Returns ``p`` ``[V, C]`` float64 from ``c``; rows sum to 1, absent candidates have probability 0."""
        c = cumulative.double()
        ones, zeros = torch.ones_like(c[:, :1]), torch.zeros_like(c[:, :1])
        return torch.cat([ones, c], 1) - torch.cat([c, zeros], 1)

    @torch.no_grad()
    def project(self) -> None:
        """Keeps every gate inside its window (projected gradient step)."""
        self.shared.clamp_(-_OPEN_LIMIT, _OPEN_LIMIT)
        for own in self.own:
            own.copy_((own + self.shared).clamp(-_OPEN_LIMIT, _OPEN_LIMIT) - self.shared)


def choose(cumulative: Tensor, uniform: Tensor) -> list[int]:
    """Returns one candidate index per variable: the thermometer read at ``uniform`` ``[V]`` in [0, 1).

    ``uniform = ½`` everywhere is the paper's deterministic gate.
    """
    return (cumulative.detach() > uniform[:, None].to(cumulative)).sum(1).tolist()  # type: ignore[no-any-return]
