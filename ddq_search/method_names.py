"""The names of the methods, light enough for ``--help``."""

from __future__ import annotations

from typing import Literal

Method = Literal[
    "ddq", "dq", "dqss", "edmips", "bayesian-bits", "fracbits",
    "lsq-uniform", "random", "random-search", "greedy", "ilp", "hawq-ilp", "nsga2", "rusci",
]  # fmt: skip
"""What may search: `search.method`."""
Baseline = Literal["lsq-uniform", "random", "random-search", "greedy", "ilp", "hawq-ilp", "nsga2", "rusci"]
"""What chooses policies without a joint search: a method, and a rival in `search.baselines`."""
