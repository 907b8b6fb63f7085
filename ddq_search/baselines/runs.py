"""Policies that were chosen without a joint search, trained: as rivals of a search, or as a method of their own.

A search spends ``joint + P x finetune`` epochs on its P points. A rival's M policies start from the float model and
train ``finetune + ceil(joint / M)`` epochs each. A method of its own gives its M policies ``ceil((joint + P x finetune)
/ M)`` each, P being the number of aims, but never more than the float baseline's ``joint + finetune``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ddq_search import front as fronts
from ddq_search.baselines.choosing import choose, every_uniform, require_able
from ddq_search.cost import COSTS
from ddq_search.errors import BudgetError
from ddq_search.judgement import Candidate, Front
from ddq_search.point_workers import train_all
from ddq_search.policy import Policy
from ddq_search.problem import Problem
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet

FILE = "baselines.json"


def run_method(stages: Stages, teacher: Supernet, kind: str) -> Front:
    """Chooses, trains and judges policies as a method of its own; writes the front into the run directory.

    The uniform policies it is compared with start from the float model too, with as many epochs as each of its own.

    Args:
        stages: the stages of the run.
        teacher: the trained float model.
        kind: one of `ddq_search.baselines.KINDS`.

    Raises:
        BudgetError: the method finds no policy within the budgets.
        ConfigError: there is no such method.
        RunError: training diverged, or a checkpoint or file cannot be used.
    """
    problem, search = stages.problem, stages.problem.config.search
    require_able(problem, kind)
    aims = fronts.aims(problem.pricing, problem.budgets, search.points, search.relaxed_points)
    chosen = every_uniform(problem) if kind == "lsq-uniform" else choose(stages, teacher, kind, aims)
    policies = fronts.named(problem.pricing, chosen)
    joint, tune = stages.settings.joint_epochs, stages.settings.finetune_epochs
    epochs = min(joint + tune, math.ceil((joint + len(aims) * tune) / len(policies)))
    stages.progress.note(f"{kind}: {len(policies)} policies for {len(aims)} aims, {epochs} epochs each")
    candidates = train_all(stages, [(policy, epochs) for policy in stages.with_references(policies)], teacher)
    return stages.present(candidates, teacher)


def run_baselines(stages: Stages, teacher: Supernet, kinds: Sequence[str]) -> dict[str, Any]:
    """Chooses, trains and judges the policies of every kind; writes and returns ``baselines.json``.

    A kind that finds nothing within the budgets is noted and left out.
    """
    problem, settings = stages.problem, stages.settings
    aims = fronts.aims(problem.pricing, problem.budgets, problem.config.search.points, 0)
    points = []
    for kind in kinds:
        try:
            chosen = [bits for _, bits in choose(stages, teacher, kind, aims)]
        except BudgetError as error:
            stages.progress.note(str(error))
            continue
        epochs = settings.finetune_epochs + math.ceil(settings.joint_epochs / len(chosen))
        policies = [Policy(f"{kind}{number:02d}", bits, kind) for number, bits in enumerate(chosen)]
        for candidate in train_all(stages, [(policy, epochs) for policy in policies], teacher):
            points.append({"kind": kind, "epochs": epochs, **_figures(problem, candidate)})
    document = {
        "format": "ddq-search baselines", "version": 1, "seed": problem.config.seed, "kinds": list(kinds),
        "points": points,
    }  # fmt: skip
    stages.record.write_json(FILE, document)
    return document


def _figures(problem: Problem, candidate: Candidate) -> dict[str, Any]:
    policy = candidate.policy
    price = problem.pricing.price(policy.bits)
    return {
        "name": policy.name,
        "val_loss": candidate.validation.loss,
        "val_score": candidate.validation.score,
        **{cost: price[cost] for cost in COSTS if cost in price},
        **policy.by_role(),
    }
