"""Strategies learned after training are kept unless one strategy for all tensors is nearer to the float model."""

from __future__ import annotations

import pytest
import torch

from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.policy import uniform
from ddq_search.problem import inputs
from ddq_search.ptq import _prepared
from ddq_search.quantizers.strategies import StrategyQuantizer
from ddq_search.record import RunDirectory
from ddq_search.strategy_guard import keep_nearest
from ddq_search.training import Silent

SETTINGS = {
    "search.method": "dqss", "search.mode": "ptq", "search.ptq_images": 64, "data.limit": 256, "space.weight_bits": [4],
    "space.activation_bits": [8], "training.float_epochs": 1, "search.weight_quantizers": ["min-max", "mse", "kl"],
    "search.activation_quantizers": ["min-max", "mse"],
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    problem = assemble(load_config(None, SETTINGS))
    stages, teacher = _prepared(problem, RunDirectory(tmp_path_factory.mktemp("run")), Silent())
    net = stages.calibrated(teacher)
    return stages, net, teacher, uniform(problem.space, 4, 8)


def strategies(net):
    return [each for each in net.tensor_quantizers() if isinstance(each, StrategyQuantizer)]


def learn(net, names):
    """Lets tensors have strategies in turn, as if learned."""
    for index, each in enumerate(strategies(net)):
        wanted = names[index % len(names)]
        each.choose(wanted if wanted in each.names else each.names[0])


@torch.no_grad()
def distance(stages, net, policy, teacher):
    images = list(inputs(stages.problem, 1))
    net.set_policy(policy)
    net.reestimate_norms(images)
    net.eval()
    teacher.eval()
    return sum(float(stages.task.distance(net(x), teacher(x))) for x in images)


def test_the_nearest_of_all_is_taken(prepared):
    stages, net, teacher, policy = prepared
    found = {}
    for name in ("min-max", "mse", "kl"):
        learn(net, [name])
        found[name] = distance(stages, net, policy, teacher)
    best = min(found, key=found.get)
    worst = max(found, key=found.get)
    learn(net, [worst])
    assert keep_nearest(stages, net, policy, teacher) == best
    assert distance(stages, net, policy, teacher) == pytest.approx(found[best], rel=1e-6)
    assert all(each.strategy(0) == (best if best in each.names else worst) for each in strategies(net))


def test_what_was_learned_stays_where_nothing_is_nearer(prepared):
    stages, net, teacher, policy = prepared
    learn(net, ["kl"])
    keep_nearest(stages, net, policy, teacher)
    before = [each.chosen.clone() for each in strategies(net)]
    assert keep_nearest(stages, net, policy, teacher) is None
    assert all(torch.equal(each.chosen, own) for each, own in zip(strategies(net), before, strict=True))
