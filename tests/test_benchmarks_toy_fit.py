"""DQ's toy fit: U3 and P3 settle, U1 and U2 jump, swing or end worse; measured here, and on record for all seeds."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest


@pytest.fixture(scope="module")
def toy_fit(repository):
    spec = importlib.util.spec_from_file_location("toy_fit", repository / "benchmarks" / "methods" / "toy_fit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_fit"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["toy_fit"]


@pytest.fixture(scope="module")
def recorded(repository):
    return json.loads((repository / "benchmarks" / "results" / "toy_fit.json").read_text())["fits"]


def by_case(rows):
    return {row["case"]: row for row in rows}


def runs(recorded, setting, rates):
    """The cases of every rate and seed."""
    keys = sorted({(row["rate"], row["seed"]) for row in recorded if row["rate"] in rates})
    assert len(keys) == 3 * len(rates)
    for key in keys:
        yield by_case(r for r in recorded if (r["rate"], r["seed"]) == key and r["setting"] == setting)


def test_u3_goes_down_evenly_where_u1_jumps_and_both_others_end_worse(toy_fit):
    u1, u2, u3 = (toy_fit.fit("free", case, 0.5, 0, 300) for case in ("u1", "u2", "u3"))
    assert u3.error < 0.5 * min(u1.error, u2.error)
    assert u3.error_std < 0.25 * u1.error_std
    assert u3.log_parameter_std < 0.25 * u1.log_parameter_std


def test_p3_settles_where_p1_oscillates(toy_fit):
    p1, p3 = (toy_fit.fit("tight", case, 0.5, 0, 300) for case in ("p1", "p3"))
    assert p3.error <= p1.error
    assert p3.log_parameter_std < 0.1 * p1.log_parameter_std


def test_recorded_order_with_room_for_bits(recorded):
    """Up to 8 bits U3 ends at less than half the error of U1 and U2, at every learning rate and seed."""
    for fits in runs(recorded, "free", (0.01, 0.1, 0.5)):
        assert fits["u3"]["error"] < 0.5 * min(fits["u1"]["error"], fits["u2"]["error"])


def test_recorded_jumps_with_room_for_bits(recorded):
    """Once learning is fast enough for another bit, U1 jumps several times as far as U3 moves."""
    for fits in runs(recorded, "free", (0.1, 0.5)):
        assert fits["u3"]["error_std"] < 0.25 * fits["u1"]["error_std"]
        assert fits["u3"]["log_parameter_std"] < 0.2 * fits["u1"]["log_parameter_std"]


def test_recorded_powers_of_two(recorded):
    """P3 is never worse than P1 and P2 by more than a hundredth, and swings a tenth as far as P1."""
    for fits in runs(recorded, "tight", (0.1, 0.5)):
        assert fits["p3"]["error"] < 1.01 * min(fits["p1"]["error"], fits["p2"]["error"])
        assert fits["p3"]["log_parameter_std"] < 0.1 * fits["p1"]["log_parameter_std"]


def test_recorded_order_without_room_for_bits(recorded):
    """Up to 4 bits all reach the same range unless learning is slow; U3 is at most a hundredth worse."""
    for fits in runs(recorded, "tight", (0.01, 0.1, 0.5)):
        assert fits["u3"]["error"] < 1.01 * min(fits["u1"]["error"], fits["u2"]["error"])


def test_recorded_steps_of_powers_of_two(recorded):
    """Up to 4 bits with such steps U1 and U2 swing between two grids, U3 less; on average U3 is a little worse."""
    for fits in runs(recorded, "tight, step a power of two", (0.1, 0.5)):
        assert fits["u3"]["error_std"] < 0.7 * min(fits["u1"]["error_std"], fits["u2"]["error_std"])
        assert 1.0 < fits["u3"]["error"] / min(fits["u1"]["error"], fits["u2"]["error"]) < 1.1
