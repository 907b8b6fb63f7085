"""Ordered gates: a categorical choice per variable, written as a thermometer.

Gate i of a variable opens the step from candidate i−1 to candidate i. Its probability is the hard sigmoid
``(ĝ + 1)/2`` clipped to [0, 1], whose derivative is, up to the factor ½, the straight-through window ``1[|ĝ| ≤ 1]``
of the paper's hard gate ``H(ĝ)``. Gates are ordered: the candidate is at least i with probability
``c_i = g_1 … g_i``, hence ``p_i = c_i − c_{i+1}``.

A family has one gate set per point of the front; what the task says about a gate is shared among the sets
(`ddq_search.gate_training`), what a budget says is not.

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
        own: ``ĝ`` of every set: S parameters ``[V, C − 1]``.
        exists: ``[V, C − 1]``, which gates a variable has.
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
        self.own = nn.ParameterList([nn.Parameter(torch.full(exists.shape, start)) for _ in range(sets)])

    @property
    def sets(self) -> int:
        """Number of gate sets."""
        return len(self.own)

    def cumulative(self, index: int) -> Tensor:
        """Returns ``c`` ``[V, C − 1]`` of one set: the probability of candidate 1, 2, … or a wider one."""
        return self._open(self.own[index])

    def all_cumulative(self) -> Tensor:
        """Returns ``c`` ``[S, V, C − 1]`` of all sets."""
        return self._open(torch.stack(list(self.own)))

    def _open(self, gates: Tensor) -> Tensor:
        cumulative: Tensor = (((gates + 1) / 2).clamp(0, 1) * self.exists).cumprod(-1)
        return cumulative

    @staticmethod
    def probabilities(cumulative: Tensor) -> Tensor:
        """Returns ``p`` ``[..., V, C]`` float64 from ``c``; rows sum to 1, absent candidates have probability 0.

        In main memory, where prices are, and since some devices have no float64.
        """
        return thermometer(cumulative.cpu().double())

    @torch.no_grad()
    def scores(self, index: int) -> Tensor:
        """Returns `pattern_scores` ``[V, C]`` of a set, in main memory.

        Unlike the probabilities they read each gate by itself, as the thresholded gate does: a middle candidate wins
        where the gate below is more open than closed and the gate above is not.
        """
        return pattern_scores((self.own[index].cpu() + 1) / 2, self.exists.cpu())

    @torch.no_grad()
    def project(self) -> None:
        """Keeps every gate inside its window (projected gradient step)."""
        for own in self.own:
            own.clamp_(-_OPEN_LIMIT, _OPEN_LIMIT)


def thermometer(cumulative: Tensor) -> Tensor:
    """Returns ``p`` ``[..., C]`` from ``c`` ``[..., C − 1]``, the probabilities of candidate 1, 2, … or a wider one."""
    ones, zeros = torch.ones_like(cumulative[..., :1]), torch.zeros_like(cumulative[..., :1])
    return torch.cat([ones, cumulative], -1) - torch.cat([cumulative, zeros], -1)


def pattern_scores(opened: Tensor, exists: Tensor) -> Tensor:
    """Returns the log-likelihood ``[V, C]`` float64 of the likeliest gate pattern that reads as each candidate.

    Gates up to the candidate are open and the next one is closed; those beyond may be either, since nothing reads them,
    and nothing trains them while the one below is closed. The best candidate is that of the thresholded gates. Absent
    candidates score as the widest does.

    Args:
        opened: ``[V, C − 1]``, the probability that each gate is open.
        exists: ``[V, C − 1]``, which gates a variable has.
    """
    opened = opened.double().clamp(1e-6, 1 - 1e-6)
    is_open, is_closed = opened.log() * exists, (1 - opened).log() * exists
    either = torch.maximum(is_open, is_closed)
    zeros = torch.zeros_like(is_open[:, :1])
    below = torch.cat([zeros, is_open.cumsum(1)], 1)
    beyond = torch.cat([either.flip(1).cumsum(1).flip(1), zeros], 1)
    return below + torch.cat([is_closed, zeros], 1) + torch.cat([beyond[:, 1:], zeros], 1)


def cooled(cumulative: Tensor, temperature: float) -> Tensor:
    """Returns ``c`` ``[..., C − 1]`` with every gate nearer to open or closed: its log-odds over the temperature."""
    before = torch.cat([torch.ones_like(cumulative[..., :1]), cumulative[..., :-1]], -1)
    opened = cumulative / before.where(before > 0, 1)
    result: Tensor = torch.sigmoid(torch.logit(opened) / temperature).cumprod(-1)
    return result


def choose(cumulative: Tensor, uniform: Tensor) -> list[int]:
    """Returns one candidate index per variable: the thermometer read at ``uniform`` ``[V]`` in [0, 1)."""
    return (cumulative.detach() > uniform[:, None].to(cumulative)).sum(1).tolist()


def thresholded(cumulative: Tensor) -> list[int]:
    """Returns one candidate index per variable from ``c`` ``[V, C − 1]``: that of the paper's gates ``H(ĝ)``, in order.

    >>> thresholded(torch.tensor([[0.6, 0.36], [0.6, 0.24], [0.5, 0.45]]))
    [2, 1, 0]
    """
    c = cumulative.detach()
    before = torch.cat([torch.ones_like(c[:, :1]), c[:, :-1]], 1)
    return (c > before / 2).int().cumprod(1).sum(1).tolist()
