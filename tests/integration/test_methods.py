"""Every method from float model to front: within budgets, resumable, deterministic, and deployable to the bit."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from ddq_search.baselines import KINDS
from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.cost import LATENCY
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.export.c.registry import choose_kernels
from ddq_search.integer.executor import run as execute
from ddq_search.integer.lowering import lower
from ddq_search.method_names import Method
from ddq_search.methods import INFERRING, MIXING
from ddq_search.quantizers.strategies import StrategyQuantizer
from ddq_search.record import RunDirectory
from ddq_search.search import search

SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 400, "device.profile": "cortex-a53-rpi3-lowbit-neon",
    "budgets.flash": "60%", "training.float_epochs": 3, "training.joint_epochs": 2, "training.finetune_epochs": 1,
    "training.threads": 1, "search.points": 2, "search.relaxed_points": 0, "search.extra_points": 0,
    "search.uniform": [], "search.ptq_images": 128, "search.solve_steps": 6, "search.evaluations": 20,
    "search.hessian_vectors": 1,
}  # fmt: skip
TRAINED = ("ddq", *MIXING, *INFERRING)


def run(path, **changes):
    problem = assemble(load_config(None, SETTINGS | changes))
    return problem, search(problem, RunDirectory(path))


def check(problem, front):
    """Budgets hold, and the best policy's integers are the same in both implementations."""
    searched = [point for point in front.points if point.policy.origin != "uniform"]
    assert searched
    assert all(point.within_budgets for point in searched)
    point = next(p for p in front.points if p.policy.name == front.best)
    program = lower(point.net.discretize(point.policy.bits), problem.device.arithmetic)
    images = next(iter(problem.source.plain("validation", 16)))[0]
    evaluator = IntegerEvaluator(program)
    codes = evaluator.quantize(images)
    found, wanted = evaluator.run(codes), execute(program, codes.numpy())
    assert all((found[name].numpy() == wanted[name]).all() for name in wanted)


def test_every_method_is_one_kind_of_method():
    assert set(get_args(Method)) == {*TRAINED, *KINDS}


@pytest.mark.parametrize("method", TRAINED)
def test_a_trained_method(tmp_path, method):
    problem, front = run(tmp_path / "a", **{"search.method": method})
    check(problem, front)
    document = json.loads((tmp_path / "a" / "front.json").read_text())
    assert document["method"] == method
    _, again = run(tmp_path / "a", **{"search.method": method})  # everything is taken from checkpoints
    assert again.document() == front.document()
    _, repeated = run(tmp_path / "b", **{"search.method": method})
    assert repeated.document() == front.document()
    rows = RunDirectory(tmp_path / "a").history()
    assert {"float", "joint", "finetune", "baseline"} == {row["phase"] for row in rows}
    assert all(row["target"] for row in rows if row["phase"] == "joint")


@pytest.mark.parametrize("method", [kind for kind in KINDS if kind != "rusci"])
def test_a_choosing_method(tmp_path, method):
    problem, front = run(tmp_path, **{"search.method": method})
    check(problem, front)
    assert front.document()["method"] == method


@pytest.mark.parametrize("method", ["dqss", "edmips", "dq"])
def test_without_training_of_weights(tmp_path, method):
    problem, front = run(tmp_path, **{"search.method": method, "search.mode": "ptq"})
    check(problem, front)
    assert {row["phase"] for row in RunDirectory(tmp_path).history()} >= {"float", "joint"}


def test_dqss_gives_tensors_strategies_of_their_own(tmp_path):
    _, front = run(
        tmp_path,
        **{
            "search.method": "dqss", "search.mode": "ptq", "search.solve_steps": 40,
            "space.weight_bits": [4], "search.weight_quantizers": ["min-max", "mse", "kl"], "budgets.flash": "100%",
        },
    )  # fmt: skip
    point = next(p for p in front.points if p.policy.name == front.best)
    chosen = {q.strategy(0) for q in point.net.tensor_quantizers() if isinstance(q, StrategyQuantizer)}
    assert chosen <= {"min-max", "mse", "kl", "percentile", "aciq", "cosine"}
    assert len(chosen) > 1


def test_supernet_first_then_gates(tmp_path):
    problem, front = run(tmp_path, **{"search.mode": "supernet"})
    check(problem, front)
    assert {row["phase"] for row in RunDirectory(tmp_path).history()} >= {"joint", "gates"}


@pytest.mark.parametrize("mode", ["joint", "supernet", "ptq"])
def test_nothing_left_to_choose(tmp_path, mode):
    changes = {"space.weight_bits": [4], "space.activation_bits": [8], "search.mode": mode, "search.points": 1}
    changes["budgets.flash"] = "100%"
    _, front = run(tmp_path, **changes)
    assert {bits for name, bits in front.points[0].policy.bits.items() if name.startswith("weights/")} == {4}


@pytest.mark.parametrize("family", ["multipoint", "learned"])
def test_weights_of_other_forms_are_priced_on_the_kernels_that_execute_them(tmp_path, family):
    changes = {"search.weight_quantizers": [family], "search.points": 1, "budgets.latency": "170%"}
    problem, front = run(tmp_path, **changes)
    check(problem, front)
    point = next(p for p in front.points if p.policy.name == front.best)
    program = lower(point.net.discretize(point.policy.bits), problem.device.arithmetic)
    priced = problem.device.kernels(problem.graph, problem.space, point.policy.bits)
    assert {name: kernel.name for name, kernel in choose_kernels(program, "neon", priced).items()} == priced
    assert set(priced.values()) == {"ddq_portable_points" if family == "multipoint" else "ddq_portable_codebook"}
    plain = assemble(load_config(None, SETTINGS | changes | {"search.weight_quantizers": ["uniform"]}))
    assert problem.pricing.price(point.policy.bits)[LATENCY] > 2 * plain.pricing.price(point.policy.bits)[LATENCY]


def test_weights_with_levels_are_priced_with_their_tables(tmp_path):
    changes = {"search.weight_quantizers": ["learned"], "search.points": 1, "budgets.flash": "70%"}
    problem, front = run(tmp_path, **changes)
    check(problem, front)
    assert problem.space.codebook_weights == {v.name for v in problem.space.variables if v.role == "weights"}
