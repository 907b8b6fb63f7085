"""The verdict over seeds: hypervolumes and intervals by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from reports import baselines
from reports.page import build_report
from reports.record import RunRecord, load_run
from tests.recorded_run import write_run


@pytest.fixture
def record(tmp_path):
    return load_run(write_run(tmp_path / "run"))


def with_points(record: RunRecord, search: list[tuple[float, float]], other: list[tuple[float, float]]) -> RunRecord:
    """The record with searched points and ``ilp`` baselines at the given (loss, latency), budgeted in latency."""
    rows = [{**record.points.iloc[0], "origin": "search", "within_budgets": True, "val_loss": loss, "latency_s": cost}
            for loss, cost in search]  # fmt: skip
    ilp = pd.DataFrame([{"name": "i", "kind": "ilp", "val_loss": loss, "latency_s": cost} for loss, cost in other])
    front = {**record.front, "budgets": {"latency_s": 1.0}}
    return dataclasses.replace(record, points=pd.DataFrame(rows), baselines=ilp, front=front)


def test_one_seed_by_hand(record):
    """Losses 0 … 1, costs up to 10: (0.5, 5) covers a quarter, (0, 10) and (1, 5) nothing."""
    one = with_points(record, [(0.5, 5.0)], [(0.0, 10.0), (1.0, 5.0)])
    facts = baselines.facts([one])
    assert facts[["kind", "seeds", "search", "baseline", "difference"]].to_numpy().tolist() == [
        ["ilp", 1, 0.25, 0, 0.25]
    ]
    assert baselines.sentences([one]) == [
        "Hypervolume over latency, 1 seed: 0.250 against 0.000 of ilp, more; one seed gives no interval."
    ]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((1.9, 2.0, 2.1), "the search wins."),
        ((-1.9, -2.0, -2.1), "the search loses."),
        ((1.0, 2.0, 3.0), "no difference shown."),
        ((-3.0, 3.0, 0.5), "no difference shown."),
        ((2.0, 2.01), "the search wins."),
        ((1.0, 2.0), "no difference shown; two seeds give a very wide interval, add a third."),
    ],
)
def test_seeds_give_an_interval(record, gains, verdict):
    """The corners (0, 10) and (1, 10) fix the reference; the search's cost varies around the baseline's 5."""
    corners = [(0.0, 10.0), (1.0, 10.0)]
    seeds = [with_points(record, [(0.5, 5.0 - gain)], [(0.5, 5.0), *corners]) for gain in gains]
    row = baselines.facts(seeds).iloc[0]
    assert row["difference"] == pytest.approx(np.mean(gains) * 0.05)
    assert row["low"] <= row["difference"] <= row["high"]
    sentence = baselines.sentences(seeds)[0]
    assert f"{len(gains)} seeds" in sentence
    assert sentence.endswith(verdict)


def test_the_interval_by_hand():
    """Mean 2, s = 1; t(0.975, 2) = 4.303 from the table."""
    assert baselines.interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        (2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3
    )
    assert np.isnan(baselines.interval(np.array([1.0]))).all()


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_there_is_no_difference_one_interval_in_twenty_says_so(seeds):
    noise = np.random.default_rng(0).normal(size=(2_000, seeds))
    shown = [low > 0 or high < 0 for low, high in map(baselines.interval, noise)]
    assert 0.035 < np.mean(shown) < 0.065


def test_runs_of_other_budgets_are_other_groups(record):
    first = with_points(record, [(0.5, 5.0)], [(1.0, 10.0)])
    second = dataclasses.replace(first, front={**first.front, "budgets": {"latency_s": 2.0}})
    assert len(baselines.facts([first, second])["group"].unique()) == 2


def test_a_run_without_baselines_says_nothing(record):
    assert baselines.sentences([record]) == []


def test_the_page_shows_them(record):
    (record.path / "baselines.json").write_text(
        '{"points": [{"name": "ilp00", "kind": "ilp", "val_loss": 0.5, "val_score": 90, "latency_s": 0.001, '
        '"flash_bytes": 1000, "peak_ram_bytes": 100}]}'
    )
    assert "of ilp" in build_report(record.path).read_text()
