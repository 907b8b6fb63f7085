"""Budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.budget import Wish, parse, show
from ddq_search.cost import COSTS, FLASH, LATENCY, PEAK_RAM
from ddq_search.errors import ConfigError


@pytest.mark.parametrize(
    ("cost", "text", "wish"),
    [
        (LATENCY, "80%", Wish(LATENCY, 0.8, True)),
        (LATENCY, " 12.5 ms ", Wish(LATENCY, 0.0125, False)),
        (LATENCY, 3, Wish(LATENCY, 0.003, False)),
        (FLASH, "40", Wish(FLASH, 40960.0, False)),
        (FLASH, "1e2 kib", Wish(FLASH, 102400.0, False)),
        (PEAK_RAM, ".5KiB", Wish(PEAK_RAM, 512.0, False)),
    ],
)
def test_parse(cost, text, wish):
    assert parse(cost, text) == wish


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0", "0%", "80%%", "5 s", "nan", "inf", "1e999", "1e999%", "1e-999", "1 2", "%"]
)
def test_nonsense_is_refused_by_name(cost, text):
    with pytest.raises(
        ConfigError,
        match=r"budget for (latency|flash|peak RAM|bit operations|energy proxy): .* is neither a positive number",
    ):
        parse(cost, text)


@given(st.floats(1e-6, 1e6), st.sampled_from(COSTS))
def test_numbers_survive(value, cost):
    assert parse(cost, value) == parse(cost, str(value))
    assert parse(cost, f"{value!r}%").resolve({cost: 2.0}) == pytest.approx(value / 50)


def test_show():
    assert show(LATENCY, 0.0012341) == "1.234 ms"
    assert show(FLASH, 2048.0, {FLASH: 4096.0}) == "2 KiB (50.0 % of uniform 8 bit)"
