"""Pareto fronts against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.pareto import non_dominated

POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=0, max_size=12)


@given(POINTS)
def test_brute_force(points):
    keep = non_dominated(np.array(points, dtype=float).reshape(-1, 3))
    for i, p in enumerate(points):
        dominated = any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)
        assert keep[i] == (not dominated and p not in points[:i])


@given(POINTS.filter(len))
def test_every_point_is_reached_by_the_front(points):
    rows = np.array(points, dtype=float)
    front = rows[non_dominated(rows)]
    assert all((front <= row).all(1).any() for row in rows)
