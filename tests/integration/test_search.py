"""A whole search, tiny: consistent files, every policy within its budgets, the same again, the same after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.cost import FLASH, LATENCY, PEAK_RAM
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.integer.lowering import lower
from ddq_search.pareto import non_dominated
from ddq_search.policy import read_policy
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.task import measure
from ddq_search.training import Silent

SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 400, "device.profile": "cortex-m4-stm32l4r5-ddq",
    "budgets.latency": "90%", "budgets.flash": "80%", "training.float_epochs": 2, "training.joint_epochs": 2,
    "training.finetune_epochs": 1, "training.norm_batches": 2, "training.calibration_batches": 1, "training.threads": 1,
    "search.points": 4, "search.relaxed_points": 1, "search.uniform": [[8, 8], [4, 4]],
}  # fmt: skip


class Stop(BaseException):
    pass


class Stopper(Silent):
    """Raises at a given step: a crash in the middle of an epoch."""

    def __init__(self, at):
        self.left = at

    def step(self, facts):
        self.left -= 1
        if self.left == 0:
            raise Stop


def run(path, progress=None, **changes):
    problem = assemble(load_config(None, SETTINGS | changes))
    return problem, search(problem, RunDirectory(path), progress)


def results(path):
    """Everything that must be the same: figures, policies, history without the clock."""
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history]
    rows.sort(key=lambda row: (row["phase"], row["point"] or "", row["epoch"]))
    policies = {
        file.name: file.read_text() for folder in ("policies", "references") for file in (path / folder).glob("*")
    }
    return json.loads((path / "front.json").read_text()), policies, rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "run"
    problem, front = run(path)
    return path, problem, front


def test_front_is_consistent(finished):
    path, _, front = finished
    document, policies, _ = results(path)
    assert document["format"] == "ddq-search front"
    points = document["points"]
    names = [point["name"] for point in points]
    assert len(set(names)) == len(names)
    assert {point["origin"] for point in points} >= {"search", "uniform"}
    assert {f"{name}.json" for name in names} == set(policies)
    assert json.loads(json.dumps(front.document())) == document
    searched = [point for point in points if point["origin"] == "search"]
    assert searched
    assert all(point["within_budgets"] for point in searched)
    rows = [[p["val_loss"], p[LATENCY], p[FLASH]] for p in points if p["origin"] != "uniform"]
    flags = [p["on_front"] for p in points if p["origin"] != "uniform"]
    assert non_dominated(np.array(rows)).tolist() == flags
    best = next(point for point in points if point["name"] == document["best"])
    assert best["within_budgets"]
    assert best["val_score"] == max(point["val_score"] for point in points if point["within_budgets"])
    for point in points:
        assert point["test_loss"] is not None
        assert sum(op[FLASH] for op in point["operations"]) == pytest.approx(point[FLASH])
        assert sum(op[LATENCY] for op in point["operations"]) == pytest.approx(point[LATENCY])
    assert document["float"]["epochs"] == 5


def test_policy_files_are_within_the_budgets_and_price_the_same(finished):
    path, problem, front = finished
    for file in sorted((path / "policies").glob("*.json")):
        policy = read_policy(file, problem.space)
        price = problem.pricing.price(policy.bits)
        assert all(price[cost] <= limit for cost, limit in problem.budgets.items()), file.name
        for cost in (LATENCY, FLASH, PEAK_RAM):
            assert price[cost] == front.point(policy.name).price[cost] == policy.facts[cost]
    for file in sorted((path / "references").glob("*.json")):
        assert not problem.pricing.meets(read_policy(file, problem.space).bits, problem.budgets)


def test_checkpoint_of_a_policy_reproduces_its_figures(finished):
    path, problem, front = finished
    record = RunDirectory(path, problem.fingerprint)
    point = front.point("best")
    net = problem.supernet()
    net.load_state_dict(record.load_checkpoint(f"policy-{point.policy.name}")[0])
    evaluator = IntegerEvaluator(lower(net.discretize(point.policy.bits), problem.device.arithmetic))
    for split, figures in (("validation", point.validation), ("test", point.test)):
        found = measure(problem.task, ((evaluator.scores(x), y) for x, y in problem.source.plain(split, 250)))
        assert (found.loss, found.score) == (figures.loss, figures.score)


def test_the_same_again(finished, tmp_path):
    run(tmp_path / "again")
    assert results(tmp_path / "again") == results(finished[0])


@pytest.mark.parametrize("at", [7, 15, 22, 40])
def test_interrupted_and_resumed_ends_the_same(finished, tmp_path, at):
    path = tmp_path / "run"
    with pytest.raises(Stop):
        run(path, Stopper(at))
    assert not (path / "front.json").exists()
    run(path)
    assert results(path) == results(finished[0])


def command(path, *more):
    pairs = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    return [
        sys.executable,
        "-m",
        "ddq_search",
        "search",
        "--out",
        str(path),
        *(f for p in pairs for f in ("--set", p)),
        *more,
    ]


@pytest.mark.parametrize(
    "moment", [pytest.param(0.2, marks=pytest.mark.slow), 0.5, pytest.param(0.8, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_ends_the_same(finished, tmp_path, moment):
    """kill -9 when that share of the history is written."""
    path = tmp_path / "run"
    wanted = int(moment * len(results(finished[0])[2]))
    process = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = path / "history.jsonl"
    while process.poll() is None and not (history.exists() and len(history.read_text().splitlines()) >= wanted):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (path / "front.json").exists()
    done = subprocess.run(command(path, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert results(path) == results(finished[0])
