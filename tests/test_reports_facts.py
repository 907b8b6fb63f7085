"""Facts of every figure, with exact numbers worked out from the recorded run's definition."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from reports import bits, compare, costs, front, run_facts, training, verdict
from reports.hypervolume import Reference, hypervolume
from reports.palette import COSTS
from reports.record import RunRecord, load_run
from tests.recorded_run import POLICIES, write_run


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "first"))


def test_front_facts(record: RunRecord) -> None:
    facts = front.facts(record).set_index("name")
    assert facts["uniform"].to_dict() == {f"p0{i}": "" for i in range(6)} | {"u2": "w2a2", "u4": "w4a4", "u8": "w8a8"}
    assert facts.index[facts["mixed"]].tolist() == [f"p0{i}" for i in range(6)]
    assert facts.index[facts["best"]].tolist() == ["p03"]
    assert facts.loc["p03", "weight_bits"] == (8 + 4 + 4 + 4 + 8) / 5
    assert facts.loc["p03", "act_bits"] == (8 * 7 + 4) / 8
    # weights of p03 at 4 bit halve the packed bytes of the block, 64 bytes per layer remain
    assert facts.loc["p03", "flash_bytes"] == 144 + 1152 + 1152 + 128 + 160 + 5 * 64
    assert facts.loc["p03", "flash_bytes_ratio"] == 3056 / 5488
    macs_ns = 27_648 + (147_456 + 147_456 + 16_384) / 2 + 640
    assert facts.loc["p03", "latency_s"] == pytest.approx(macs_ns * 1e-9 + 5e-5 + 1e-5, rel=1e-12)
    assert facts.loc["u8", "latency_s_ratio"] == 1.0


def test_a_searched_policy_equal_to_a_uniform_one_is_not_mixed(tmp_path: Path) -> None:
    twin = ("p06", "search", (4,) * 5, (8, 4, 4, 4, 4, 4, 4, 8), 0.36, 90.5)
    facts = front.facts(load_run(write_run(tmp_path / "run", policies=(*POLICIES, twin)))).set_index("name")
    assert not facts.loc["p06", "mixed"]
    assert facts.loc["p06", "uniform"] == ""


def test_staircase_drops_dominated_and_equal_points() -> None:
    cost, loss = np.array([1.0, 2.0, 3.0, 3.0, 4.0]), np.array([0.9, 0.9, 0.5, 0.4, 0.45])
    assert front.staircase(cost, loss, larger_is_better=False).to_numpy().tolist() == [[1.0, 0.9], [3.0, 0.4]]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("quality", front.QUALITIES)
def test_front_figure_shows_every_point_once(record: RunRecord, cost: str, quality: str) -> None:
    facts = front.facts(record)
    figure = front.figure(facts, record, cost, quality)
    drawn = {
        name: (x, y)
        for trace in figure.data
        if trace.customdata is not None
        for name, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)
    }
    per_unit = COSTS[cost].per_unit
    expected = {row["name"]: (row[cost] / per_unit, row[quality]) for _, row in facts.iterrows()}
    assert drawn == expected
    assert ("uncalibrated" in figure.layout.xaxis.title.text) == (cost == "latency_s")
    lines = [shape.line.dash for shape in figure.layout.shapes]
    assert lines == (["dot", "dash"] if cost in record.budgets else ["dot"])


def test_layer_facts(record: RunRecord) -> None:
    facts = costs.facts(record)
    rows = facts[facts["point"] == "p03"].set_index("operation")
    assert rows.index.tolist() == ["stem", "block.conv1", "block.conv2", "block.short", "block.add", "pool", "head"]
    assert rows.loc["block.conv1", ["weight_bits", "act_bits", "flash_bytes"]].tolist() == [4.0, 4.0, 1216.0]
    assert rows["weight_bits"].isna().sum() == 2
    assert rows["live_bytes"].max() == 2560.0
    assert rows.index[rows["peak"]].tolist() == ["block.short"]
    totals = facts.groupby("point")[["latency_s", "flash_bytes"]].sum()
    expected = record.points.set_index("name")[["latency_s", "flash_bytes"]]
    assert np.allclose(totals, expected.loc[totals.index], rtol=1e-12, atol=0)


def test_a_tied_tensor_shows_the_bits_of_its_group(record: RunRecord) -> None:
    facts = bits.schedule_facts(record)
    output = facts[(facts["operation"] == "output") & (facts["point"] == "u4")]
    assert output["act_bits"].tolist() == [8.0]  # the policy names only "head", whose grid the output keeps


def test_training_facts(record: RunRecord) -> None:
    facts = training.facts(record)
    assert facts["epochs_done"].tolist() == [1, 2, 3, 4, *np.repeat(range(5, 11), 2), *range(11, 23)]
    assert facts["segment"].nunique() == 1 + 2 + 2 + 2
    gates = training.gate_facts(record)
    last = gates[(gates["set"] == 1) & (gates["step"] == 6) & (gates["variable"] == "weights/head")]
    assert last.set_index("bits")["probability"].to_dict() == pytest.approx({2: 0.05, 4: 0.3, 8: 0.65})
    assert [cost.name for cost in training.expected_costs(facts)] == ["latency_s", "flash_bytes"]


def test_verdict_facts(record: RunRecord) -> None:
    facts = verdict.facts(record)
    assert facts["best"] == facts["best_by_rule"] == "p03"
    assert facts["score_delta"] == 94.25 - 95.5
    assert facts["flash_bytes_ratio"] == 3056 / 5488
    # p02 (0.350) beats u4 (0.360), p05 (0.240) beats u8 (0.250); p03 and p04 beat neither in loss and cost
    assert facts["beats"] == {"latency_s": ["p02", "p05"], "flash_bytes": ["p02", "p05"], "peak_ram_bytes": []}
    assert facts["judged"] == ["latency_s", "flash_bytes"]
    assert facts["worth_it"] is False


def test_verdict_sentences(record: RunRecord) -> None:
    ship, against, delta, worth = verdict.sentences(record)
    assert ship == (
        "Ship p03: validation top-1 94.25 %, the best within every budget, at latency 0.2439 ms (uncalibrated), "
        "flash 2.984 KiB, peak RAM 2.5 KiB."
    )
    assert against == "Against uniform 8 bit: latency 39 % lower, flash 44.3 % lower, peak RAM unchanged."
    assert delta == "Against its own float model: 1.25 points worse."
    assert worth.startswith("Was the search worth it? Hardly")
    assert "2 in latency, 2 in flash" in worth


def test_verdict_counts_three_beating_policies_as_worth_it(tmp_path: Path) -> None:
    policies = [(*row[:4], 0.2, 95.0) if row[0] in ("p00", "p01", "p02") else row for row in POLICIES]
    assert verdict.facts(load_run(write_run(tmp_path / "run", policies=policies)))["worth_it"] is True


def test_verdict_when_nothing_fits(tmp_path: Path) -> None:
    record = load_run(write_run(tmp_path / "run", policies=[row for row in POLICIES if row[0] in ("u8", "p05")]))
    assert record.best is None
    assert verdict.sentences(record)[0].startswith("No policy meets every budget")


def test_run_facts(record: RunRecord) -> None:
    facts = run_facts.facts(record)
    said = {(row["section"], row["key"]): row["value"] for _, row in facts.iterrows()}
    assert said["Run", "seed"] == "7"
    assert said["Budgets", "latency"] == "0.3 ms (uncalibrated)"
    assert said["Device profile", "calibration"].startswith("uncalibrated")
    assert said["Export check of best", "onnx.worst_codes_apart"] == "1"
    assert said["Environment", "torch"] == "2.9.0"
    assert run_facts.proof(record) == "best: exported integers are bit-exact."


def test_hypervolume_of_a_hand_drawn_front() -> None:
    reference = Reference(best_loss=0.0, worst_loss=1.0, worst_cost=4.0)
    # quality 0.25 from cost 1, 0.5 from 2, 0.75 from 3; the point (3.5, 0.6) is dominated, (5, 0) beyond the reference
    losses, prices = [0.75, 0.5, 0.25, 0.4, 0.0], [1.0, 2.0, 3.0, 3.5, 5.0]
    assert hypervolume(losses, prices, reference) == 0.25 * (0.25 + 0.5 + 0.75)


def test_compare_facts(record: RunRecord, tmp_path: Path) -> None:
    other = load_run(write_run(tmp_path / "first", device="cortex-m7-test", slowdown=2.0))
    facts = compare.compare_facts([record, other])
    assert facts["run"].unique().tolist() == ["first (1)", "first (2)"]
    assert len(facts) == 18
    volumes = compare.hypervolume_facts(facts).set_index(["run", "cost"])
    assert volumes["worst_cost"]["first (1)", "latency_s"] == volumes["worst_cost"]["first (2)", "latency_s"]
    assert volumes["hypervolume"]["first (1)", "latency_s"] > volumes["hypervolume"]["first (2)", "latency_s"]
    assert volumes["hypervolume"]["first (1)", "flash_bytes"] == volumes["hypervolume"]["first (2)", "flash_bytes"]
    best = compare.best_at(facts, "latency_s", 3.35e-4)
    assert best[["run", "name"]].to_numpy().tolist() == [["first (1)", "p05"], ["first (2)", "p00"]]


def test_policy_diff_lists_only_what_differs() -> None:
    a = {"weights": {"x": 8, "y": 4}, "activations": {"x": 8}}
    b = {"weights": {"x": 8, "y": 2, "z": 4}, "activations": {"x": 4}}
    diff = compare.policy_diff(a, b)
    assert diff[["role", "name"]].to_numpy().tolist() == [["weights", "y"], ["weights", "z"], ["activations", "x"]]
    assert diff["change"].fillna(0).tolist() == [-2.0, 0.0, -4.0]
    assert compare.policy_diff(a, a).empty


def test_the_proof_says_what_ran(record: RunRecord) -> None:
    exported = dataclasses.replace(
        record,
        verifications={
            "p03": {
                "bit_exact": True,
                "c": {"passed": True, "targets": {"cortex-m4": {"note": ""}, "aarch64": {"note": "could not run"}}},
                "tflite": {"passed": False},
                "onnx": None,
            }
        },
    )
    said = "p03: exported integers are bit-exact; p03: C passed on host, cortex-m4, TFLite FAILED."
    assert run_facts.proof(exported) == said
