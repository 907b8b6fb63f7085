"""The joint search of DDQ: gates, weights and quantizers at once, or gates alone on a supernet; then its policies.

Each function takes the `ddq_search.stages.Stages` of a run and is resumable as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddq_search import front as fronts
from ddq_search.batches import FirstBatches
from ddq_search.budget import LABELS
from ddq_search.errors import BudgetError
from ddq_search.finetune_shares import finetune_all
from ddq_search.gate_training import GateTraining
from ddq_search.judgement import Candidate, Front, judge_points
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.policy import Policy
from ddq_search.stages import Stages, freeze
from ddq_search.supernet import Supernet
from ddq_search.training import Phase

_COLDEST = 0.2
"""Temperature at which policies are drawn in the end of the joint training."""


@dataclass(frozen=True)
class Searched:
    """What the joint training leaves: the supernet, and every gate set's aim and scores ``[V, C]``."""

    net: Supernet
    aims: Sequence[fronts.Aim]
    scores: Sequence[NDArray[np.float64]]


def train_jointly(stages: Stages, teacher: Supernet) -> Searched:
    """Searches all points at once."""
    config = stages.problem.config.search
    aims = fronts.aims(stages.problem.pricing, stages.problem.budgets, config.points, config.relaxed_points)
    net = stages.calibrated(teacher, sets=len(aims))
    stages.train(joint_phase(stages, net, teacher, aims))
    return _searched(net, aims)


def joint_phase(stages: Stages, net: Supernet, teacher: Supernet, aims: Sequence[fronts.Aim]) -> Phase:
    """Returns the training of a calibrated supernet's weights, quantizers and gates; one gate set per aim."""
    settings = stages.settings
    steps = settings.joint_epochs * stages.source.train_batches(settings.batch_size)
    optimizers = [
        (stages.weight_optimizer(net), settings.joint_rate),
        stages.step_optimizer(net.quantizers.parameters()),
        stages.choice_optimizer(net.gates, steps),
    ]
    coldest = stages.problem.config.search.coldest or _COLDEST
    return _gated_phase(stages, "joint", net, teacher, aims, optimizers, settings.joint_epochs, coldest)


def train_supernet(stages: Stages, teacher: Supernet) -> Supernet:
    """Trains weights and quantizers for every candidate precision, whatever the budgets.

    Each step computes a random policy. Policies differ in how many precise tensors they have as much as in which:
    a step draws a level between all narrowest and all widest first, then every variable around it.
    """
    net = stages.calibrated(teacher)
    variables, seed = stages.problem.space.variables, stages.problem.config.seed
    counts = torch.tensor([len(variable.candidates) for variable in variables])
    loss_of = stages.loss_of(stages.forward_of(net), teacher)

    def loss(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        level, noise = torch.rand(1, generator=generator), torch.rand(len(counts), generator=generator)
        drawn = ((level + noise - 0.5).clamp(0, 0.999) * counts).long().tolist()
        net.set_policy({v.name: v.candidates[index] for v, index in zip(variables, drawn, strict=True)})
        value = loss_of(x, y)
        return value, {"loss": f"{value.item():.3f}"}

    optimizers = [
        (stages.weight_optimizer(net), stages.settings.joint_rate),
        stages.step_optimizer(net.quantizers.parameters()),
    ]
    stages.train(stages.phase("joint", net, optimizers, loss, stages.settings.joint_epochs))
    return net


def train_gates(stages: Stages, supernet: Supernet, teacher: Supernet, steps: int) -> Searched:
    """Searches all points with the weights and quantizers of a trained supernet, which stay as they are."""
    config = stages.problem.config.search
    aims = fronts.aims(stages.problem.pricing, stages.problem.budgets, config.points, config.relaxed_points)
    net = stages.problem.placed_supernet(sets=len(aims))
    net.adopt(supernet)
    if not net.gates.exists.any():
        return _searched(net, aims)  # every variable is pinned
    freeze(net.model, net.quantizers)
    batches = FirstBatches(stages.batches, steps)
    epochs = -(-steps // batches.train_batches(stages.settings.batch_size))
    phase = _gated_phase(stages, "gates", net, teacher, aims, [stages.choice_optimizer(net.gates, steps)], epochs)
    stages.train(phase, batches)
    return _searched(net, aims)


def policies_of(stages: Stages, searched: Searched) -> list[Policy]:
    """Returns the policies to fine-tune: one per gate set, and the uniform ones they are compared with."""
    policies = fronts.choose_policies(stages.problem.pricing, searched.aims, searched.scores)
    if not policies:
        raise BudgetError("the search found no policy within its budgets; this is a defect, please report it")
    return stages.with_references(policies)


def fill_front(stages: Stages, candidates: list[Candidate], searched: Searched, teacher: Supernet) -> list[Candidate]:
    """Fine-tunes further policies in the gaps while too few points within the budgets are on the front."""
    problem, config = stages.problem, stages.problem.config.search
    added: list[Candidate] = []
    while len(added) < config.extra_points:
        known = [*candidates, *added]
        points = [p for p in judge_points(problem, known) if p.on_front and p.within_budgets]
        if len(points) >= config.front_points:
            break
        taken = [candidate.policy.bits for candidate in known]
        gate_sets, front = (searched.aims, searched.scores), [(p.price, p.validation.loss) for p in points]
        bits = fronts.between(problem.pricing, problem.budgets, gate_sets, front, taken)
        if bits is None:
            break
        policy = Policy(f"x{len(added):02d}", bits, "search")
        added.append(stages.finetune(policy, searched.net, teacher))
    return added


def conclude(stages: Stages, searched: Searched, teacher: Supernet) -> Front:
    """Fine-tunes the policies of a searched supernet, judges them and writes the front into the run directory."""
    candidates = finetune_all(stages, policies_of(stages, searched), searched.net, teacher)
    candidates += fill_front(stages, candidates, searched, teacher)
    return stages.present(candidates, teacher)


def _gated_phase(
    stages: Stages, name: str, net: Supernet, teacher: Supernet, aims: Sequence[fronts.Aim],
    optimizers: list[tuple[torch.optim.Optimizer, float]], epochs: int, coldest: float = 1.0,
) -> Phase:  # fmt: skip
    config, seed = stages.problem.config.search, stages.problem.config.seed
    tables, variables = stages.problem.pricing.tables, len(stages.problem.space.variables)
    limits = [aim.limits for aim in aims]
    lagrangian = AugmentedLagrangian(
        limits, penalty=config.penalty, rate=config.multiplier_rate, form=config.constraint
    )
    gates = GateTraining(net, tables, lagrangian)
    loss_of = stages.loss_of(stages.forward_of(net), teacher)
    steps = epochs * stages.source.train_batches(stages.settings.batch_size)

    def loss(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
        index = number % net.gates.sets
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        drawn = torch.rand(variables, generator=generator) if config.gates == "sampled" else None
        gates.sample(index, drawn, coldest ** (number / steps))
        value = loss_of(x, y)
        shown = {"loss": f"{value.item():.3f}", "point": str(index)}
        for cost, limit in lagrangian.targets[index].items():
            if gates.expected:
                shown[LABELS[cost]] = f"{100 * gates.expected[cost][index].item() / limit:.0f}%"
        return value, shown

    phase = stages.phase(name, net, optimizers, loss, epochs)
    if not net.gates.exists.any():
        return phase  # every variable is pinned
    phase.after_backward, phase.before_step, phase.after_step = gates.collect, gates.backward, gates.update
    phase.batch_leaves = gates.leaves
    phase.after_epoch = lambda epoch: gates.facts()
    phase.extra = {
        "multipliers": lagrangian.multipliers, "sensitivity": gates.sensitivity, "weight": gates.weight,
    }  # fmt: skip
    return phase


def _searched(net: Supernet, aims: Sequence[fronts.Aim]) -> Searched:
    return Searched(net, aims, [net.gates.scores(index).numpy() for index in range(len(aims))])
