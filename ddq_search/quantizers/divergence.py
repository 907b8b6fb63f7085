"""Where to clip so that a histogram changes least: calibration by the Kullback-Leibler divergence, as in TensorRT.

A histogram of magnitudes is cut after i bins. P is what the cut leaves, the mass beyond it added to its last bin; Q is
the cut histogram as the quantizer keeps it: the mass of every cell of the grid spread evenly over the cell's bins that
are not empty in P. The threshold is the upper edge of the i bins whose ``KL(P‖Q)`` is least.

The cells are those of our grids: the first and the last half a step wide, the largest level on the threshold. The
slides' 128 cells of equal width differ from that by half a cell at each end, which matters at 2 bits, not at 8.

Exact zeros are left out of the histogram: they are on every grid, and the half of an activation that a ReLU set to 0
would make a spike in the first cell which every coarser cell has to spread out (ours; the slides say nothing of it).

Source: Migacz, "8-bit inference with TensorRT", GTC 2017 (2048 bins, 128 levels).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 2048
"""Most bins of the histogram, as in the slides."""
_VALUES_PER_BIN = 16
_BINS_PER_LEVEL = 4
_KEPT_SHARE = 0.95


def clip_of_least_divergence(magnitudes: Tensor, steps: int) -> float:
    """Returns the threshold for magnitudes ``[E]`` that a grid covers with ``steps`` steps from 0.

    Few values make few bins, 16 values to a bin on average; where that leaves fewer than 4 bins to a level, nothing is
    clipped: a histogram of single values resembles anything.
    """
    largest = magnitudes.max().item()
    positive = magnitudes[magnitudes > 0].float()
    bins = min(BINS, positive.numel() // _VALUES_PER_BIN)
    if bins < _BINS_PER_LEVEL * (steps + 1):
        return largest
    counts = torch.histc(positive, bins, 0.0, largest).double().cpu().numpy()
    return largest * least_divergence(counts, steps) / bins


def least_divergence(counts: NDArray[np.float64], steps: int) -> int:
    """Returns how many bins of a histogram to keep: more than ``steps``, and so many that 95 % of the mass is kept.

    The divergence counts what is cut, not how far it moves: where much mass lies on one value, it would cut there.
    """
    most_of_it = int(np.searchsorted(np.cumsum(counts), _KEPT_SHARE * counts.sum())) + 1
    kept = np.arange(max(steps + 1, most_of_it), len(counts) + 1)
    return int(kept[np.argmin(divergences(counts, kept, steps))])


def divergences(counts: NDArray[np.float64], kept: NDArray[np.int64], steps: int) -> NDArray[np.float64]:
    """Returns ``KL(P‖Q)`` for every number of kept bins, all at once; infinite where Q lacks what P has."""
    total = counts.sum()
    mass, filled, logs = (_cumulated(part) for part in (counts, counts > 0, _times_log(counts)))
    edges = -((steps - (2 * np.arange(1, steps + 1) - 1) * kept[:, None]) // (2 * steps))  # ⌈(c − ½) kept/steps − ½⌉
    edges = np.concatenate([np.zeros_like(kept)[:, None], edges.clip(0, kept[:, None]), kept[:, None]], 1)
    cells, spread = np.diff(mass[edges], axis=1), np.diff(filled[edges], axis=1)
    beyond, last = total - mass[kept], counts[kept - 1]
    spread[:, -1] += (last == 0) & (beyond > 0)
    in_cells = cells.copy()
    in_cells[:, -1] += beyond
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(cells / spread / mass[kept][:, None])
        cross = np.where(in_cells > 0, in_cells * log_q, 0.0).sum(1)
    own = logs[kept] - _times_log(last) + _times_log(last + beyond)
    return np.asarray((own - total * np.log(total) - cross) / total)


def _cumulated(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _times_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values * np.log(np.maximum(values, 1.0)))
