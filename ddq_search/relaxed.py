"""Methods that train one network per point of a front: EdMIPS, FracBits, Bayesian Bits, DQSS, Mixed Precision DNNs.

Each aim of the front gets a network of its own, trained with its budgets from the float model for ``joint_epochs``
(``search.solve_steps`` on frozen weights without labels in ``ptq`` mode), then the policy that the method ends at, made
to keep every budget, and the same fine-tuning as any other policy. Budgets are kept by the augmented Lagrangian that
DDQ uses here, so methods differ in their relaxations and quantizers only.
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
from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing
from ddq_search.gate_training import choice_facts
from ddq_search.judgement import Front
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.methods import INFERRING
from ddq_search.mixture_training import InferredTraining, MixtureTraining
from ddq_search.quantizers.relaxations import Fractional, HardConcrete, Relaxation, Softmax
from ddq_search.quantizers.strategies import StrategyQuantizer
from ddq_search.stages import Stages, freeze
from ddq_search.strategy_guard import keep_nearest
from ddq_search.supernet import Supernet
from ddq_search.training import Phase

_COLDEST = 0.02
"""Temperature at which DQSS ends, at one strategy: mixed, three of 2 bits have more levels than each of them."""


def search_relaxed(stages: Stages, teacher: Supernet, method: str) -> Front:
    """Trains, chooses, fine-tunes and judges; writes the front into the run directory.

    Raises:
        BudgetError: no policy keeps the budgets.
        RunError: training diverged, or a checkpoint or file cannot be used.
    """
    problem, search = stages.problem, stages.problem.config.search
    aims = fronts.aims(problem.pricing, problem.budgets, search.points, search.relaxed_points)
    if stages.settings.compile:
        stages.tell_once("training.compile is left out where networks mix their candidates or infer their bitwidths")
    found: list[tuple[fronts.Origin, dict[str, int]]] = []
    trained: list[int] = []
    for number, aim in enumerate(aims):
        _train_one(stages, teacher, method, number, aim)
        _, choices = _settled(stages, method, number)
        chosen = choices.policy(problem.pricing, aim.limits, [bits for _, bits in found])
        if chosen is not None:
            found.append((aim.origin, chosen))
            trained.append(number)
    if not found:
        raise BudgetError(f"{method}: found no policy within the budgets; this is a defect, please report it")
    taken, candidates = [bits for _, bits in found], []
    for policy in stages.with_references(fronts.named(problem.pricing, found)):
        number = trained[taken.index(dict(policy.bits))] if dict(policy.bits) in taken else trained[0]
        net, _ = _settled(stages, method, number)
        if method == "dqss" and stages.frozen:
            single = keep_nearest(stages, net, policy.bits, teacher)
            if single is not None:
                stages.progress.note(f"{policy.name}: nearest to the float model with strategy {single!r} everywhere")
        candidates.append(stages.finetune(policy, net, teacher))
    return stages.present(candidates, teacher)


def relaxation_of(method: str, net: Supernet, coldest: float | None = None) -> Relaxation:
    """Returns the fresh choices of a mixing method for a network; ``coldest`` is None for the method's own."""
    columns = [quantizer.columns for quantizer in net.tensor_quantizers()]
    if method == "fracbits":
        return Fractional(columns)
    if method == "bayesian-bits":
        return HardConcrete(columns)
    return Softmax(columns, coldest=coldest or (_COLDEST if method == "dqss" else 1.0))


def _train_one(stages: Stages, teacher: Supernet, method: str, number: int, aim: fronts.Aim) -> None:
    """Trains the network of one aim; its checkpoint is the result."""
    problem, settings = stages.problem, stages.settings
    net = stages.calibrated(teacher)
    batches = FirstBatches(stages.batches, problem.config.search.solve_steps) if stages.frozen else stages.batches
    per_epoch = batches.train_batches(settings.batch_size)
    epochs = -(-problem.config.search.solve_steps // per_epoch) if stages.frozen else settings.joint_epochs
    optimizers = [] if stages.frozen else [(stages.weight_optimizer(net), settings.joint_rate)]
    if stages.frozen:
        freeze(net.model)
    learned = [p for p in net.quantizers.parameters() if p.requires_grad]
    if learned:
        optimizers.append(stages.step_optimizer(learned))
    limits = AugmentedLagrangian(
        [aim.limits], penalty=problem.config.search.penalty, rate=problem.config.search.multiplier_rate,
        form=problem.config.search.constraint,
    )  # fmt: skip
    relaxation = _prepared(stages, method, net)
    if relaxation is None:
        phase = _inferring(stages, teacher, net, limits, stages.phase(_name(number), net, optimizers, _unset, epochs))
    else:
        optimizers.append(stages.choice_optimizer(relaxation, epochs * per_epoch))
        phase = stages.phase(_name(number), net, optimizers, _unset, epochs)
        _mixing(stages, teacher, net, relaxation, limits, phase, epochs * per_epoch)
    stages.train(phase, batches)


def _name(number: int) -> str:
    return f"joint-{number:02d}"


def _prepared(stages: Stages, method: str, net: Supernet) -> Relaxation | None:
    """Lets a network follow its choices; returns them, None where its quantizers' own parameters are the choices."""
    if method in INFERRING:
        net.infer()
        return None
    relaxation = relaxation_of(method, net, stages.problem.config.search.coldest)
    net.add_module("relaxation", relaxation)
    return relaxation


@dataclass(frozen=True)
class _Choices:
    """What a trained network says about policies.

    Attributes:
        scores: ``[V, C]``, the greater, the rather a candidate is chosen.
        rounding: FracBits' positions, where it is that.
    """

    scores: NDArray[np.float64]
    rounding: Fractional | None

    def policy(
        self, pricing: Pricing, limits: Mapping[str, float], taken: Sequence[dict[str, int]]
    ) -> dict[str, int] | None:
        """Returns the policy within the limits that it ends at, None where that is taken already."""
        rounded = None if self.rounding is None else _rounded_within(pricing, self.rounding, limits)
        if rounded is not None and rounded not in taken:
            return rounded
        return pricing.most_likely(self.scores, limits, taken)


@torch.no_grad()
def _settled(stages: Stages, method: str, number: int) -> tuple[Supernet, _Choices]:
    """Reads the trained network of an aim, fixed at what it learned: only one is in memory at a time."""
    loaded = stages.record.load_checkpoint(_name(number))
    assert loaded is not None, "it was trained before"
    net = stages.problem.placed_supernet()
    relaxation = _prepared(stages, method, net)
    own = {key.removeprefix("module."): value for key, value in loaded[0].items() if key.startswith("module.")}
    stages.record.restore(_name(number), net, own)
    if relaxation is None:
        inferred: NDArray[np.float64] = net.inferred_probabilities().clamp_min(1e-9).log().cpu().numpy()
        net.settle()
        return net, _Choices(inferred, None)
    relaxation.advance(1.0)
    for quantizer, row in zip(net.tensor_quantizers(), relaxation.column_probabilities(), strict=True):
        if isinstance(quantizer, StrategyQuantizer):
            quantizer.settle(row)
    rounding = relaxation if isinstance(relaxation, Fractional) else None
    return net, _Choices(relaxation.scores().cpu().numpy(), rounding)


def _unset(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
    raise AssertionError("the loss of a phase is set before it runs")


def _mixing(
    stages: Stages, teacher: Supernet, net: Supernet, relaxation: Relaxation, limits: AugmentedLagrangian, phase: Phase,
    steps: int,
) -> None:  # fmt: skip
    problem = stages.problem
    loss_of = stages.loss_of(net, teacher)
    choices = MixtureTraining(net, relaxation, problem.pricing.tables, limits)

    def loss(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
        relaxation.advance(number / steps)
        generator = torch.Generator().manual_seed(problem.config.seed * 1_000_003 + number)
        choices.sample(torch.rand(relaxation.exists.shape, generator=generator))
        value = loss_of(x, y)
        return value, {"loss": f"{value.item():.3f}"}

    phase.kind, phase.point, phase.batch_loss = "joint", phase.name, loss
    phase.after_backward, phase.before_step, phase.after_step = choices.collect, choices.backward, choices.update
    phase.batch_leaves, phase.after_overflow = choices.leaves, choices.forget
    phase.after_epoch = lambda epoch: choice_facts(
        net, relaxation.probabilities()[None], limits, problem.pricing.tables
    )
    phase.extra = {"multipliers": limits.multipliers, "sensitivity": choices.sensitivity}


def _inferring(stages: Stages, teacher: Supernet, net: Supernet, limits: AugmentedLagrangian, phase: Phase) -> Phase:
    problem = stages.problem
    loss_of = stages.loss_of(net, teacher)
    choices = InferredTraining(net, problem.pricing.tables, limits)

    def loss(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
        value = loss_of(x, y)
        return value + choices.penalty().to(value.device), {"loss": f"{value.item():.3f}"}

    phase.kind, phase.point, phase.batch_loss = "joint", phase.name, loss
    phase.after_step = choices.update
    phase.after_epoch = lambda epoch: choice_facts(
        net, net.inferred_probabilities()[None], limits, problem.pricing.tables
    )
    phase.extra = {"multipliers": limits.multipliers}
    return phase


def _rounded_within(pricing: Pricing, relaxation: Fractional, limits: Mapping[str, float]) -> dict[str, int] | None:
    """Returns FracBits' own rounding: fractions from some offset on go up, the least offset that keeps the budgets.

    The paper bisects the offset, which takes costs for monotone in bits; here every offset that matters is tried.
    """
    variables = pricing.tables.space.variables
    fractions = (relaxation.position.detach() % 1).tolist()
    for offset in sorted({0.0, *fractions, 1.0}):
        choice = relaxation.rounded(offset + 1e-6).tolist()
        policy = {v.name: v.candidates[index] for v, index in zip(variables, choice, strict=True)}
        if pricing.meets(policy, limits):
            return policy
    return None
