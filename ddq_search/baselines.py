"""What a search is compared with: other ways of choosing policies, at the same budgets and with equal training.

* ``random``: random preferences, projected into the budgets.
* ``greedy``: from uniform 8 bit, one tensor after the other goes to its next lower precision: the one that loses least
  per share of the violated budgets that it saves.
* ``ilp``: the integer program that minimises the sum of single-tensor losses under the budgets, exactly.

Losses of greedy and ilp are measured: one tensor at one precision, everything else at 8 bits, distance of the output to
the float model's on a few training batches. A search spends ``joint + points x finetune`` epochs on its points; each of
a baseline's M policies starts from the float model and trains ``finetune + ceil(joint / M)`` epochs, so no baseline
trains less than the search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddq_search import front as fronts
from ddq_search.cost import COSTS
from ddq_search.feasibility import Pricing
from ddq_search.policy import Policy, uniform
from ddq_search.problem import Problem, inputs
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet

FILE = "baselines.json"


def run_baselines(stages: Stages, teacher: Supernet, kinds: Sequence[str]) -> dict[str, Any]:
    """Chooses, trains and judges the policies of every kind; writes and returns ``baselines.json``."""
    problem, record = stages.problem, stages.record
    config, training = problem.config.search, problem.config.training
    aims = [aim for aim in fronts.aims(problem.pricing, problem.budgets, config.points, 0) if aim.origin == "search"]
    losses = single_losses(problem, teacher) if {"greedy", "ilp"} & set(kinds) else None
    points = []
    for kind in kinds:
        policies = list(_named(kind, choose(problem, kind, [aim.limits for aim in aims], losses)))
        epochs = training.finetune_epochs + math.ceil(training.joint_epochs / max(len(policies), 1))
        for policy in policies:
            candidate = stages.train_policy(policy, teacher, epochs)
            price = problem.pricing.price(policy.bits)
            points.append(
                {
                    "name": policy.name,
                    "kind": kind,
                    "epochs": epochs,
                    "val_loss": candidate.validation.loss,
                    "val_score": candidate.validation.score,
                    **{cost: price[cost] for cost in COSTS if cost in price},
                    **policy.by_role(),
                }
            )
    document = {"format": "ddq-search baselines", "version": 1, "seed": problem.config.seed, "points": points}
    record.write_json(FILE, document)
    return document


def choose(
    problem: Problem, kind: str, limits: Sequence[Mapping[str, float]], losses: NDArray[np.float64] | None
) -> list[dict[str, int]]:
    """Returns one distinct policy per set of limits, where the baseline finds one.

    Args:
        problem: the problem.
        kind: ``random``, ``greedy`` or ``ilp``.
        limits: cost → largest allowed value, one mapping per policy.
        losses: result of `single_losses`; not needed for ``random``.
    """
    generator = np.random.default_rng([problem.config.seed, 7])
    width = max(len(variable.candidates) for variable in problem.space.variables)
    found: list[dict[str, int]] = []
    for limit in limits:
        if kind == "greedy":
            assert losses is not None
            policy = greedy(problem.pricing, losses, limit)
        else:
            if kind == "random":
                scores = generator.standard_normal((len(problem.space.variables), width))
            else:
                assert losses is not None
                scores = -losses
            policy = problem.pricing.most_likely(scores, limit, found)
        if policy is not None and policy not in found:
            found.append(policy)
    return found


def greedy(pricing: Pricing, losses: NDArray[np.float64], limits: Mapping[str, float]) -> dict[str, int] | None:
    """Returns the policy that one-step flips reach, or None when they end before every limit is kept.

    A flip is worth its relative saving of the violated costs; one that saves none of them is never made.
    """
    variables = pricing.tables.space.variables
    policy = uniform(pricing.tables.space, 8, 8)
    while True:
        price = pricing.price(policy)
        violated = {cost: limit for cost, limit in limits.items() if price[cost] > limit}
        if not violated:
            return policy
        best: tuple[float, str, int] | None = None
        for row, variable in enumerate(variables):
            index = variable.candidates.index(policy[variable.name])
            if index == 0:
                continue
            lower = variable.candidates[index - 1]
            after = pricing.tables.price({**policy, variable.name: lower})
            saved = sum((price[cost] - after[cost]) / limit for cost, limit in violated.items())
            lost = max(losses[row, index - 1] - losses[row, index], 0.0)
            if saved > 0 and (best is None or lost / saved < best[0]):
                best = lost / saved, variable.name, lower
        if best is None:
            return None
        policy = {**policy, best[1]: best[2]}


@torch.no_grad()
def single_losses(problem: Problem, teacher: Supernet) -> NDArray[np.float64]:
    """Returns ``[V, C]`` distances to the float output with one variable at one candidate and the rest at 8 bits.

    Relative to uniform 8 bit, so a variable at 8 bits has 0; absent candidates have 0.
    """
    batches = list(inputs(problem, problem.config.training.calibration_batches))
    net = problem.supernet()
    net.model.load_state_dict(teacher.model.state_dict())
    net.calibrate(batches)
    net.eval()
    teacher.eval()
    outputs = [teacher(x) for x in batches]

    def distance(policy: Mapping[str, int]) -> float:
        net.set_policy(policy)
        found = [problem.task.distance(net(x), output) for x, output in zip(batches, outputs, strict=True)]
        return float(torch.stack(found).mean())

    full = uniform(problem.space, 8, 8)
    reference = distance(full)
    width = max(len(variable.candidates) for variable in problem.space.variables)
    losses = np.zeros((len(problem.space.variables), width))
    for row, variable in enumerate(problem.space.variables):
        for index, bits in enumerate(variable.candidates):
            if bits != full[variable.name]:
                losses[row, index] = distance({**full, variable.name: bits}) - reference
    return losses


def _named(kind: str, found: Sequence[Mapping[str, int]]) -> Iterator[Policy]:
    for number, bits in enumerate(found):
        yield Policy(f"{kind}{number:02d}", bits, kind)
