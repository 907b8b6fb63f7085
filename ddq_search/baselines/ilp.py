"""The policy of least summed sensitivity within the limits: an integer linear program over the cost tables.

Source: Yao et al., HAWQ-V3: Dyadic Neural Network Quantization, ICML 2021 (arXiv 2011.10680): one
sensitivity per layer and precision, their sum minimised subject to size, bit operations or latency. Here the costs are
the factors of the device (tables over up to three tensors, so the program stays exact where a layer's latency depends
on weights *and* inputs), all budgets hold at once, and activation tensors have precisions of their own.

Legend: V variables, C candidates of the widest variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ddq_search.feasibility import Pricing


def least_sensitive(
    pricing: Pricing,
    sensitivities: NDArray[np.float64],
    limits: Mapping[str, float],
    excluded: Sequence[Mapping[str, int]] = (),
) -> dict[str, int] | None:
    """Returns the policy of least summed sensitivity ``[V, C]`` within the limits, or None when none keeps them.

    The sum is least, unless the solver was stopped (`projector`). ``excluded`` policies are not returned again.
    """
    scale = float(np.abs(sensitivities).max()) or 1.0  # the solver's tolerances are absolute
    return pricing.most_likely(-sensitivities / scale, limits, excluded)
