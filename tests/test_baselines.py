"""The rivals of the search: what they choose by hand, and that they get their share of training."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from ddq_search import baselines
from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.cost import FLASH, LATENCY, CostTables
from ddq_search.feasibility import Pricing
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.space import build_space
from hardware_models import cost_model
from hardware_models.contract import example_graphs

SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 400, "device.profile": "cortex-m7-stm32h743-cmsis-nn",
    "budgets.flash": "80%", "training.float_epochs": 1, "training.joint_epochs": 3, "training.finetune_epochs": 1,
    "training.norm_batches": 2, "training.calibration_batches": 1, "training.threads": 1, "search.points": 2,
    "search.relaxed_points": 0, "search.extra_points": 0, "search.uniform": [[8, 8]],
    "search.baselines": ["random", "greedy", "ilp"],
}  # fmt: skip


@pytest.fixture(scope="module")
def pricing():
    graph, cost = example_graphs()["perceptron"], cost_model("cortex-m7-stm32h743-cmsis-nn")
    space = build_space(graph, cost)
    return Pricing.build(graph, cost, CostTables(space, cost.factors(graph, space)))


def losses_of(pricing, by_name):
    """``[V, C]`` with the given loss of a variable at 4 bits."""
    variables = pricing.tables.space.variables
    result = np.zeros((len(variables), max(len(v.candidates) for v in variables)))
    for row, variable in enumerate(variables):
        result[row, 0] = by_name.get(variable.name, 0.0) if len(variable.candidates) > 1 else 0.0
    return result


def test_greedy_flips_what_loses_least_per_byte(pricing):
    """84 weights against 21: at equal loss the larger layer saves four times as much; dear enough it stays."""
    full = pricing.reference[FLASH]
    cheap = baselines.greedy(pricing, losses_of(pricing, {"weights/0": 1.0, "weights/2": 1.0}), {FLASH: full - 5})
    assert (cheap["weights/0"], cheap["weights/2"]) == (4, 8)
    dear = baselines.greedy(pricing, losses_of(pricing, {"weights/0": 9.0, "weights/2": 1.0}), {FLASH: full - 5})
    assert (dear["weights/0"], dear["weights/2"]) == (8, 4)
    assert baselines.greedy(pricing, losses_of(pricing, {}), {FLASH: full}) == dict.fromkeys(cheap, 8)


def test_greedy_gives_up_where_no_flip_saves(pricing):
    """On this core 4-bit weights are slower: no flip lowers latency."""
    limits = {LATENCY: 0.9 * pricing.reference[LATENCY]}
    assert baselines.greedy(pricing, losses_of(pricing, {}), limits) is None


def test_ilp_is_the_best_of_all_policies(pricing):
    losses = losses_of(pricing, {"weights/0": 3.0, "weights/2": 2.0})
    variables = pricing.tables.space.variables
    limits = {FLASH: pricing.reference[FLASH] - 5}
    found = pricing.most_likely(-losses, limits, [])

    def total(policy):
        return sum(losses[row, v.candidates.index(policy[v.name])] for row, v in enumerate(variables))

    every = [dict(zip([v.name for v in variables], bits, strict=True))
             for bits in itertools.product(*(v.candidates for v in variables))]  # fmt: skip
    assert total(found) == min(total(policy) for policy in every if pricing.meets(policy, limits))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("baselines") / "run"
    problem = assemble(load_config(None, SETTINGS))
    search(problem, RunDirectory(path))
    return path, problem


def test_every_kind_keeps_the_budgets_and_trains_its_share(finished):
    path, problem = finished
    points = json.loads((path / "baselines.json").read_text())["points"]
    assert {point["kind"] for point in points} == {"random", "greedy", "ilp"}
    for kind in ("random", "greedy", "ilp"):
        mine = [point for point in points if point["kind"] == kind]
        bits = [json.dumps([point["weights"], point["activations"]]) for point in mine]
        assert len(set(bits)) == len(mine)
        assert sum(point["epochs"] for point in mine) >= 3 + len(mine)  # joint + points x finetune
    assert all(point[FLASH] <= problem.budgets[FLASH] for point in points)


def test_losses_of_single_tensors(finished):
    """Zero at 8 bits; never much below zero where bits are taken away, and positive somewhere."""
    path, problem = finished
    record = RunDirectory(path, problem.fingerprint)
    teacher = problem.supernet()
    teacher.set_float()
    tensors, _ = record.load_checkpoint("float")
    teacher.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    losses = baselines.single_losses(problem, teacher)
    for row, variable in enumerate(problem.space.variables):
        assert losses[row, variable.candidates.index(8)] == 0
    assert losses.max() > 0
    assert np.array_equal(losses, baselines.single_losses(problem, teacher))
