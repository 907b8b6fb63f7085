"""The rivals of the search: what they choose by hand, and that they get their share of training."""

from __future__ import annotations

import json
from collections import Counter
from typing import get_args

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.baselines import KINDS, require_able, run_method
from ddq_search.baselines.evaluated import Evaluated, best_within
from ddq_search.baselines.greedy import greedy
from ddq_search.baselines.ilp import least_sensitive
from ddq_search.baselines.random_policies import random_policies
from ddq_search.baselines.uniform_lsq import uniform_policies, widest_uniform
from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.errors import BudgetError, ConfigError
from ddq_search.feasibility import Pricing
from ddq_search.method_names import Baseline
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.space import SearchSpace, Variable, build_space
from ddq_search.stages import Stages, begin
from ddq_search.training import Silent
from hardware_models import cost_model
from hardware_models.contract import example_graphs
from tests.toys import ToyDevice, all_policies, toy_tables

SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 200, "device.profile": "cortex-m7-stm32h743-cmsis-nn",
    "budgets.flash": "80%", "training.float_epochs": 1, "training.joint_epochs": 2, "training.finetune_epochs": 1,
    "training.norm_batches": 2, "training.calibration_batches": 1, "training.threads": 1, "search.points": 2,
    "search.relaxed_points": 0, "search.extra_points": 0, "search.uniform": [[8, 8]],
    "search.evaluations": 12, "search.hessian_vectors": 1,
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
    cheap = greedy(pricing, losses_of(pricing, {"weights/0": 1.0, "weights/2": 1.0}), {FLASH: full - 5})
    assert (cheap["weights/0"], cheap["weights/2"]) == (4, 8)
    dear = greedy(pricing, losses_of(pricing, {"weights/0": 9.0, "weights/2": 1.0}), {FLASH: full - 5})
    assert (dear["weights/0"], dear["weights/2"]) == (8, 4)
    assert greedy(pricing, losses_of(pricing, {}), {FLASH: full}) == dict.fromkeys(cheap, 8)


def test_greedy_gives_up_where_no_flip_saves(pricing):
    """On this core 4-bit weights are slower: no flip lowers latency."""
    limits = {LATENCY: 0.9 * pricing.reference[LATENCY]}
    assert greedy(pricing, losses_of(pricing, {}), limits) is None


def test_greedy_steps_by_hand():
    """Two tensors, 8 → 4 → 2 bits. Saving per step: a 40, 20; b 4, 2. Loss per step: a 4, 40; b 1, 1.

    Loss per saved byte: a 0.1, then 2; b 0.25, then 0.5. So a goes first, then b twice, then a: 88, 48, 44, 42, 22.
    """
    sizes = {"a": [20.0, 40.0, 80.0], "b": [2.0, 4.0, 8.0]}
    losses = np.array([[44.0, 4.0, 0.0], [2.0, 1.0, 0.0]])
    pricing = additive({FLASH: sizes})
    steps = {88: (8, 8), 87: (4, 8), 47: (4, 4), 43: (4, 2), 41: (2, 2)}
    for limit, bits in steps.items():
        assert tuple(greedy(pricing, losses, {FLASH: limit}).values()) == bits
    assert greedy(pricing, losses, {FLASH: 21.0}) is None


def additive(costs):
    """Pricing of tensors at 2, 4 and 8 bits with the given cost → tensor → cost by candidate."""
    names = list(next(iter(costs.values())))
    variables = tuple(Variable(f"weights/{name}", "weights", (2, 4, 8), (name,)) for name in names)
    space = SearchSpace(variables, {name: f"weights/{name}" for name in names}, {})
    tables = CostTables(space, [
        Factor(cost, name, "weights", (f"weights/{name}",), np.array(table), 0 if cost == PEAK_RAM else None)
        for cost, by_name in {PEAK_RAM: {names[0]: [1.0, 1.0, 1.0]}, **costs}.items() for name, table in by_name.items()
    ])  # fmt: skip
    return Pricing.build(nx.MultiDiGraph(), ToyDevice(tables), tables)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 5000), tight=st.floats(0.7, 1.1), scale=st.sampled_from([1.0, 1e-9, 1e6]))
def test_ilp_is_the_best_of_all_policies(seed, tight, scale):
    tables = toy_tables([(2, 4, 8), (4, 8), (2, 8)], seed)
    pricing = Pricing.build(nx.MultiDiGraph(), ToyDevice(tables), tables)
    scores = scale * np.random.default_rng(seed).exponential(1.0, (3, 3)).cumsum(1)[:, ::-1]
    every = all_policies(tables.space)
    limits = {cost: tight * float(np.median([pricing.price(p)[cost] for p in every])) for cost in (LATENCY, FLASH)}

    def total(policy):
        variables = enumerate(tables.space.variables)
        return sum(scores[row, v.candidates.index(policy[v.name])] for row, v in variables)

    able = sorted((p for p in every if pricing.meets(p, limits)), key=total)
    found = least_sensitive(pricing, scores, limits)
    if not able:
        assert found is None
        return
    assert pricing.meets(found, limits)
    assert total(found) == pytest.approx(total(able[0]), rel=1e-3)  # the solver's gap
    second = least_sensitive(pricing, scores, limits, [found])
    assert (second is None) == (len(able) == 1)
    assert second is None or total(second) == pytest.approx(total(able[1]), rel=1e-3)


def test_random_policies_keep_their_limits_and_repeat_by_seed():
    tables = toy_tables([(2, 4, 8)] * 6, 1)
    pricing = Pricing.build(nx.MultiDiGraph(), ToyDevice(tables), tables)
    limits = [{FLASH: share * pricing.reference[FLASH]} for share in (0.85, 0.9, 0.95, 1.0)]
    found = random_policies(pricing, limits, 3)
    assert all(pricing.meets(policy, limit) for policy, limit in zip(found, limits, strict=True))
    assert len({tuple(policy.values()) for policy in found}) == 4
    assert found == random_policies(pricing, limits, 3)
    assert found != random_policies(pricing, limits, 4)
    assert random_policies(pricing, [{FLASH: 1.0}], 3) == [None]


def test_uniform_policies_are_the_pairs_within_the_budget():
    """8, 4 and 2 bits of both tensors cost 88, 44 and 22 bytes."""
    pricing = additive({FLASH: {"a": [20.0, 40.0, 80.0], "b": [2.0, 4.0, 8.0]}})
    found = uniform_policies(pricing, {FLASH: 50.0})
    assert found == {(2, 8): {"weights/a": 2, "weights/b": 2}, (4, 8): {"weights/a": 4, "weights/b": 4}}
    assert len(uniform_policies(pricing, {})) == 3
    assert widest_uniform(pricing, {FLASH: 50.0}) == {"weights/a": 4, "weights/b": 4}
    assert widest_uniform(pricing, {FLASH: 20.0}) is None
    with pytest.raises(BudgetError, match=r"nearest are 2-bit weights with 8-bit activations, 10.0 % beyond"):
        uniform_policies(pricing, {FLASH: 20.0})


def test_best_within_limits_takes_the_least_loss_once():
    known = [Evaluated({"a": bits}, {FLASH: float(bits)}, loss) for bits, loss in ((8, 0.1), (4, 0.3), (2, 0.2))]
    assert best_within(known, {FLASH: 4.0}) == {"a": 2}
    assert best_within(known, {FLASH: 4.0}, [{"a": 2}]) == {"a": 4}
    assert best_within(known, {FLASH: 1.0}) is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("baselines") / "run"
    problem = assemble(load_config(None, {**SETTINGS, "search.baselines": list(KINDS)}))
    search(problem, RunDirectory(path))
    return path, problem


def test_baselines_are_added_to_a_finished_run(finished):
    """They change no checkpoint: nothing is trained again."""
    path, problem = finished
    fewer = assemble(load_config(None, {**SETTINGS, "search.baselines": ["random"]}))
    assert fewer.fingerprint == problem.fingerprint
    before = {file.name: file.stat().st_mtime_ns for file in (path / "checkpoints").iterdir()}
    search(problem, RunDirectory(path))
    assert {file.name: file.stat().st_mtime_ns for file in (path / "checkpoints").iterdir()} == before


def test_every_kind_keeps_the_budgets_and_trains_its_share(finished):
    path, problem = finished
    points = json.loads((path / "baselines.json").read_text())["points"]
    assert {point["kind"] for point in points} == set(KINDS)
    for kind in KINDS:
        mine = [point for point in points if point["kind"] == kind]
        bits = [json.dumps([point["weights"], point["activations"]]) for point in mine]
        assert len(set(bits)) == len(mine)
        assert sum(point["epochs"] for point in mine) >= 2 + len(mine)  # joint + points x finetune
    assert all(point[FLASH] <= problem.budgets[FLASH] for point in points)


@pytest.mark.parametrize("kind", ["hawq-ilp", "lsq-uniform"])
def test_a_method_of_its_own_spends_what_a_search_spends(kind, tmp_path):
    """Two aims: 2 + 2 x 1 epochs for all policies together, at most 2 + 1 for one; references get as many as each."""
    problem = assemble(load_config(None, SETTINGS))
    record = RunDirectory(tmp_path / "run")
    begin(problem, record, Silent())
    stages = Stages(problem, record, Silent())
    front = run_method(stages, stages.train_float(), kind)
    own = [point for point in front.points if point.policy.origin == "search"]
    assert own
    assert all(point.within_budgets and point.policy.name.startswith("p") for point in own)
    assert any(point.on_front for point in own)
    assert [point.policy.name for point in front.points if point.policy.origin == "uniform"] == ["w8a8"]
    epochs = min(3, -(-4 // len(own)))
    trained = Counter(row["point"] for row in record.history() if row["phase"] == "alone")
    assert trained == dict.fromkeys([point.policy.name for point in front.points], epochs)
    document = json.loads((tmp_path / "run/front.json").read_text())
    assert [point["name"] for point in document["points"]] == [point.policy.name for point in front.points]
    assert document["points"][0]["test_loss"] is not None
    assert {path.stem for path in (tmp_path / "run/policies").iterdir()} == {point.policy.name for point in own}
    again = run_method(Stages(problem, record, Silent()), stages.train_float(), kind)
    assert [point.validation for point in again.points] == [point.validation for point in front.points]


def test_what_cannot_serve_is_named_before_any_training():
    config = load_config(None, {**SETTINGS, "budgets.flash": None, "budgets.latency": "100%"})
    problem = assemble(config)
    with pytest.raises(BudgetError, match="rusci: the memory-driven rule knows flash and peak RAM only, not latency"):
        require_able(problem, "rusci")
    with pytest.raises(ConfigError, match="no way of choosing policies is called 'ga'; known: lsq-uniform, random"):
        require_able(problem, "ga")
    for kind in set(KINDS) - {"rusci"}:
        require_able(problem, kind)


def test_every_kind_of_the_configuration_is_known():
    assert set(get_args(Baseline)) == set(KINDS)
