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


EQUAL = [(0.5, 5.0), (0.0, 10.0), (1.0, 10.0)]
"""A baseline's points of hypervolume 0.25, whose corners (0, 10) and (1, 10) fix the reference."""


def with_points(
    record: RunRecord, search: list[tuple[float, float]], other: list[tuple[float, float]], seed: int = 0
) -> RunRecord:
    """The record with searched points and ``ilp`` baselines at the given (loss, latency), budgeted in latency."""
    rows = [{**record.points.iloc[0], "origin": "search", "within_budgets": True, "val_loss": loss, "latency_s": cost}
            for loss, cost in search]  # fmt: skip
    ilp = pd.DataFrame([{"name": "i", "kind": "ilp", "val_loss": loss, "latency_s": cost} for loss, cost in other])
    front = {**record.front, "budgets": {"latency_s": 1.0}, "seed": seed}
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
    """The search's cost varies around the baseline's 5."""
    seeds = [with_points(record, [(0.5, 5.0 - gain)], EQUAL, seed) for seed, gain in enumerate(gains)]
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


def with_config(record: RunRecord, **sections: object) -> RunRecord:
    return dataclasses.replace(record, config={**record.config, **sections})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("search", "mode", "supernet"), ("training", "joint_epochs", 8), ("data", "limit", 100)],
)
def test_other_settings_are_other_groups_and_are_named(record, section, key, value):
    first, second = (with_points(with_config(record, search={}), [(0.5, 4.0)], EQUAL, seed) for seed in (0, 1))
    runs = [first, with_config(second, **{section: {key: value}})]
    found = baselines.facts(runs)
    assert found["seeds"].tolist() == [1, 1]
    absent, present = found["group"]
    assert (f"{section}.{key} absent" in absent, f"{section}.{key} {value}" in present) == (True, True)
    assert [line.partition(": Hypervolume")[0] for line in baselines.sentences(runs)] == [absent, present]


def test_a_solved_run_is_no_seed_of_a_search(record):
    first, second = (with_points(record, [(0.5, 4.0)], EQUAL, seed) for seed in (0, 1))
    (record.path / "solved.json").write_text("{}")
    solved = dataclasses.replace(second, solved=load_run(record.path).solved)
    assert baselines.facts([first, solved])["seeds"].tolist() == [1, 1]


def test_where_a_run_was_computed_and_kept_is_no_setting(record):
    first, second = (with_points(record, [(0.5, 4.0)], EQUAL, seed) for seed in (0, 1))
    elsewhere = {"out": "elsewhere", "seed": 1, "training": {"threads": 4, "device": "cuda", "compile": True}}
    assert baselines.facts([first, with_config(second, **elsewhere)])["seeds"].tolist() == [2]


def test_a_seed_that_comes_again_counts_once_and_is_told(record):
    first, second = (with_points(record, [(0.5, 4.0)], EQUAL, seed) for seed in (0, 1))
    without = dataclasses.replace(first, baselines=pd.DataFrame())
    assert baselines.facts([without, first, second, first]).equals(baselines.facts([first, second]))
    assert baselines.sentences([first, first]) == [
        "Seed 0 comes 2 times with equal settings: it counts once.",
        *baselines.sentences([first]),
    ]


def test_runs_without_a_baseline_are_left_out_of_its_comparison(record):
    """Two losing seeds would win on average with a run without baselines counted as hypervolume 0."""
    losing = [with_points(record, [(0.5, 6.0)], EQUAL, seed) for seed in (0, 1)]
    without = dataclasses.replace(with_points(record, [(0.5, 5.0)], EQUAL, 2), baselines=pd.DataFrame())
    random = losing[1].baselines.assign(kind="random")
    both = dataclasses.replace(losing[1], baselines=pd.concat([losing[1].baselines, random]))
    found = baselines.facts([losing[0], both, without]).set_index("kind")
    assert found["seeds"].to_dict() == {"ilp": 2, "random": 1}
    assert found["difference"].to_list() == pytest.approx([-0.05, -0.05])


def test_a_baseline_that_found_nothing_counts_as_zero(record):
    """The file of baselines names it."""
    (record.path / "baselines.json").write_text('{"kinds": ["ilp", "greedy"], "points": []}')
    read = load_run(record.path)
    assert read.baseline_kinds == ["ilp", "greedy"]
    searches = [with_points(read, [(0.5, cost)], EQUAL, seed) for seed, cost in enumerate((5.0, 4.0))]
    nothing = dataclasses.replace(searches[1], baselines=read.baselines)
    found = baselines.facts([searches[0], nothing]).set_index("kind")
    assert found[["seeds", "found"]].T.to_dict("list") == {"ilp": [2, 1], "greedy": [2, 0]}
    assert found["baseline"].to_dict() == pytest.approx({"ilp": 0.125, "greedy": 0.0})
    assert baselines.sentences([searches[0], nothing])[1] == (
        "Hypervolume over latency, 2 seeds: 0.275; no policy of greedy is within the budgets."
    )


def test_a_search_that_found_nothing_counts_as_zero(record):
    one = with_points(record, [(0.5, 5.0)], EQUAL)
    over = dataclasses.replace(one, points=one.points.assign(within_budgets=False))
    assert baselines.facts([over])[["search", "baseline"]].to_numpy().tolist() == [[0.0, 0.25]]
    assert baselines.sentences([dataclasses.replace(over, baselines=over.baselines.iloc[:0])]) == []


def test_uniform_policies_over_budget_count_as_zero(record):
    one = with_points(record, [(0.5, 5.0)], EQUAL)
    uniform = one.points.assign(origin="uniform", within_budgets=False)
    found = baselines.facts([dataclasses.replace(one, points=pd.concat([one.points, uniform]))]).set_index("kind")
    assert found["baseline"].to_dict() == pytest.approx({"uniform": 0.0, "ilp": 0.25})


def test_a_run_without_baselines_says_nothing(record):
    assert baselines.sentences([record]) == []


def test_the_page_shows_them(record):
    (record.path / "baselines.json").write_text(
        '{"points": [{"name": "ilp00", "kind": "ilp", "val_loss": 0.5, "val_score": 90, "latency_s": 0.001, '
        '"flash_bytes": 1000, "peak_ram_bytes": 100}]}'
    )
    assert "of ilp" in build_report(record.path).read_text()
