"""The stages of a search, each resumable: what the recipes `ddq_search.search` and `ddq_search.solve` are made of."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddq_search import distributed, native
from ddq_search.batches import TrainingBatches
from ddq_search.budget import LABELS, show
from ddq_search.compilation import CompiledForward, Forward
from ddq_search.compute import trainable_compute, widened
from ddq_search.config import TrainingConfig
from ddq_search.distillation import DistilledLoss
from ddq_search.errors import RunError
from ddq_search.graph import to_json, write_graphml
from ddq_search.judgement import Candidate, Front, judge
from ddq_search.policy import Policy, uniform
from ddq_search.problem import Problem, evaluate_policy, inputs, measure_as_is
from ddq_search.quantizers import fused
from ddq_search.record import RunDirectory, environment
from ddq_search.supernet import Supernet
from ddq_search.task import Measure, Split
from ddq_search.training import (
    SCHEDULES,
    BatchLoss,
    Phase,
    Progress,
    moving_average,
    run_phase,
)  # fmt: skip


def begin(problem: Problem, record: RunDirectory, progress: Progress) -> None:
    """Writes what is known before training into the run directory and tells budgets and calibration."""
    compute = trainable_compute(problem.config.training)
    record.fingerprint = problem.fingerprint
    record.write_text("config.toml", problem.config.to_toml())
    record.write_json("environment.json", {**environment(compute.describe()), "quantizers": fused.status()})
    record.write_text("graph.json", to_json(problem.graph))
    distributed.from_first(lambda: write_graphml(problem.graph, record.path / "graph.graphml"))
    variables = [
        {"name": v.name, "role": v.role, "candidates": v.candidates, "members": v.members}
        for v in problem.space.variables
    ]
    record.write_json("space.json", {"variables": variables, "unused_rules": problem.space.unused_rules})
    for failure in native.failures():
        progress.note(failure)
    for pattern in problem.space.unused_rules:
        progress.note(f"pin {pattern!r} matched nothing")
    for cost, limit in problem.budgets.items():
        progress.note(f"budget: {LABELS[cost]} ≤ {show(cost, limit, problem.pricing.reference)}")
    progress.note(f"latency of {problem.device.name} is {problem.device.calibration}")


FIGURES = "baseline.json"
"""File of a run directory: loss and score of the float baseline by split, and the digest of its weights."""


def known_figures(record: RunDirectory) -> dict[str, Any]:
    """Returns what the run directory knows of its float baseline; nothing where it was not measured yet."""
    known: dict[str, Any] = record.read_json(FIGURES) if (record.path / FIGURES).exists() else {}
    return known


def rate_of(epochs: int, settings: TrainingConfig) -> float:
    """Returns the learning rate of a fine-tuning: in proportion to its epochs where these are more than an equal share.

    At most the rate of the joint training. In one epoch a high rate does harm that there is no time to undo.
    """
    faster = settings.finetune_rate * (epochs / max(1, settings.finetune_epochs))
    return max(settings.finetune_rate, min(settings.joint_rate, faster))


def freeze(*modules: torch.nn.Module) -> None:
    """Lets nothing in the modules be trained."""
    for module in modules:
        module.requires_grad_(False)


class Stages:
    """The stages of one run; each can be resumed.

    Args:
        problem: what is searched.
        record: where checkpoints and results go.
        progress: who is told.
        settings: training settings; the configuration's unless given.
        calibration: the only batches that anything but the float training may see; weights then stay as they are.
    """

    def __init__(
        self, problem: Problem, record: RunDirectory, progress: Progress, *, settings: TrainingConfig | None = None,
        calibration: TrainingBatches | None = None,
    ) -> None:  # fmt: skip
        self.problem, self.record, self.progress = problem, record, progress
        self.settings = settings or problem.config.training
        self.task, self.source = problem.task, problem.source
        self.compute = trainable_compute(self.settings)
        self.batches, self.frozen = calibration or problem.source, calibration is not None
        self._told: set[str] = set()

    def train(self, phase: Phase, source: TrainingBatches | None = None) -> None:
        """Trains a phase on the run's batches, or on others."""
        run_phase(
            phase, source or self.batches, self.record, seed=self.problem.config.seed,
            batch_size=self.settings.batch_size, compute=self.compute, progress=self.progress,
        )  # fmt: skip

    # -- float ------------------------------------------------------------------------------------------------

    def train_float(self) -> Supernet:
        """Trains the float model; returns it as a supernet with its quantizers switched off."""
        torch.manual_seed(self.problem.config.seed)
        net = self.problem.placed_supernet()
        net.set_float()
        rate = self.settings.float_rate
        self.train(self._weights_phase("float", net, self.settings.float_epochs, rate, None), self.source)
        return net

    def train_baseline(self, teacher: Supernet) -> tuple[Supernet, int]:
        """Gives the float model the epochs that a searched policy got on top; returns it and all its epochs."""
        settings = self.settings
        net = copy.deepcopy(teacher)
        if self.frozen:  # nothing trains weights, so the float model itself is the baseline
            return net, settings.float_epochs
        joint, tune = settings.joint_epochs, settings.finetune_epochs
        phase = self._weights_phase("baseline", net, joint + tune, settings.joint_rate, teacher)
        share = joint / (joint + tune)
        low = settings.finetune_rate / settings.joint_rate
        curve = SCHEDULES[settings.schedule]
        phase.schedule = lambda f: curve(f / share) if f < share else low * curve((f - share) / (1 - share))
        self.train(phase)
        facts = self.record.checkpoint_facts("baseline")
        assert facts is not None, "every phase leaves a checkpoint"
        return net, settings.float_epochs + int(facts["epoch"])

    def _weights_phase(self, name: str, net: Supernet, epochs: int, rate: float, teacher: Supernet | None) -> Phase:
        loss_of = self.loss_of(self.forward_of(net), teacher)

        def loss(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
            value = loss_of(x, y)
            return value, {"loss": f"{value.item():.3f}"}

        phase = self.phase(name, net, [(self.weight_optimizer(net), rate)], loss, epochs)
        if self.settings.ema_decay:
            phase.averaged = moving_average(net, self.settings.ema_decay)
        return phase

    def forward_of(self, net: Supernet) -> Forward:
        """Returns what runs a network: itself, or compiled where the settings ask for it."""
        if not self.settings.compile:
            return net
        if net.traceable:
            return CompiledForward(net, self.progress.note)
        self.tell_once("training.compile is left out: quantizers of these families choose outside the graph")
        return net

    def tell_once(self, text: str) -> None:
        """Notes something that several phases would say."""
        if text not in self._told:
            self._told.add(text)
            self.progress.note(text)

    def phase(
        self, name: str, net: Supernet, optimizers: list[tuple[torch.optim.Optimizer, float]], loss: BatchLoss,
        epochs: int,
    ) -> Phase:  # fmt: skip
        """Returns a phase with the run's settings."""
        settings = self.settings
        return Phase(
            name, name, net, optimizers, loss, epochs, SCHEDULES[settings.schedule],
            gradient_clip=settings.gradient_clip, accumulate=settings.accumulate,
            loss_scale=self.compute.loss_scale(),
        )  # fmt: skip

    def loss_of(self, forward: Forward, teacher: Supernet | None) -> DistilledLoss:
        """Returns what runs a network on a batch and gives the loss, in part the distance to the teacher's output."""
        weight = self.settings.distillation
        reference = teacher.eval() if teacher is not None and weight else None
        return DistilledLoss(self.task, forward, reference, weight, self.settings.distilled_share)

    @torch.no_grad()
    def distance_to(self, teacher: Supernet, batches: int) -> Callable[[Supernet], float]:
        """Returns what measures how far a network's output is from the teacher's: the task's distance, on average.

        On the first calibration batches, on which the network's batch-norm statistics are re-estimated before.
        """
        images = list(inputs(self.problem, batches))
        teacher.eval()
        references = [widened(teacher(x)) for x in images]

        @torch.no_grad()
        def distance(net: Supernet) -> float:
            net.reestimate_norms(images)
            net.eval()
            pairs = zip(images, references, strict=True)
            return sum(float(self.task.distance(widened(net(x)), own)) for x, own in pairs) / len(images)

        return distance

    def calibrated(self, teacher: Supernet, sets: int = 1) -> Supernet:
        """Returns a fresh supernet of the float model's weights, its quantizers set on the calibration batches."""
        net = self.problem.placed_supernet(sets=sets)
        self._calibrate(net, teacher)
        return net

    def _calibrate(self, net: Supernet, teacher: Supernet) -> None:
        net.model.load_state_dict(teacher.model.state_dict())
        net.calibrate(inputs(self.problem, self.settings.calibration_batches))

    def choice_optimizer(self, choices: torch.nn.Module, steps: int) -> tuple[torch.optim.Optimizer, float]:
        """Returns the optimizer of gates or other relaxed choices, and its rate: the fewer steps, the higher."""
        rate = self.settings.gate_rate or min(0.1, max(0.004, 12 / max(steps, 1)))
        return torch.optim.Adam(choices.parameters(), betas=(0.9, 0.99), foreach=True), rate

    def weight_optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        """Returns the optimizer of a network's own parameters; biases and normalisation are not decayed."""
        decayed = [p for p in net.model.parameters() if p.ndim > 1]
        free = [p for p in net.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        if self.settings.optimizer == "adam":
            return torch.optim.Adam(groups, foreach=True)
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=True)

    def step_optimizer(
        self, parameters: Iterable[Tensor], rate: float | None = None
    ) -> tuple[torch.optim.Optimizer, float]:
        """Returns the optimizer of what quantizers learn, and its rate: many tensors of few numbers, so all at once."""
        return torch.optim.Adam(parameters, foreach=True), self.settings.step_rate if rate is None else rate

    # -- phases and policies ------------------------------------------------------------------------------------

    def with_references(self, policies: Sequence[Policy]) -> list[Policy]:
        """Returns the policies and, where they are not among them, the uniform ones they are compared with."""
        policies, taken = list(policies), [dict(policy.bits) for policy in policies]
        for weight_bits, activation_bits in self.problem.config.search.uniform:
            bits = uniform(self.problem.space, weight_bits, activation_bits)
            if bits not in taken:
                taken.append(bits)
                policies.append(Policy(f"w{weight_bits}a{activation_bits}", bits, "uniform"))
        return policies

    # -- fine-tuning --------------------------------------------------------------------------------------------

    def finetune(
        self, policy: Policy, supernet: Supernet, teacher: Supernet, epochs: int | None = None
    ) -> Candidate:  # fmt: skip
        """Fine-tunes one policy from the supernet's weights; returns it with its validation figures.

        As many ``epochs`` as configured unless told; where it has more, it moves faster (`rate_of`).
        """
        settings = self.settings

        def prepare(net: Supernet) -> None:
            net.load_state_dict(supernet.without_gates(), strict=False)
            net.set_policy(policy.bits)
            net.reestimate_norms(inputs(self.problem, settings.norm_batches))

        epochs = settings.finetune_epochs if epochs is None else epochs
        rates = (rate_of(epochs, settings), settings.step_rate / 3)
        return self._trained("finetune", policy, prepare, teacher, epochs, rates)

    def train_apart(
        self, policy: Policy, teacher: Supernet, epochs: int, supernet: Supernet | None = None
    ) -> Candidate:  # fmt: skip
        """Fine-tunes one policy from a supernet's weights, or trains it from the float model's where there is none."""
        if supernet is None:
            return self.train_policy(policy, teacher, epochs)
        return self.finetune(policy, supernet, teacher, epochs)

    def is_trained(self, policy: Policy) -> bool:
        """Returns whether the run directory holds a policy's network."""
        return self.record.checkpoint_facts(f"policy-{policy.name}") is not None

    def train_policy(self, policy: Policy, teacher: Supernet, epochs: int) -> Candidate:
        """Trains one policy from the float model, without any search; returns it with its validation figures."""

        def prepare(net: Supernet) -> None:
            self._calibrate(net, teacher)
            net.set_policy(policy.bits)

        rates = (self.settings.joint_rate, self.settings.step_rate)
        return self._trained("alone", policy, prepare, teacher, epochs, rates)

    def _trained(
        self, kind: str, policy: Policy, prepare: Callable[[Supernet], None], teacher: Supernet, epochs: int,
        rates: tuple[float, float],
    ) -> Candidate:  # fmt: skip
        name = f"policy-{policy.name}"
        finished = self.record.checkpoint_facts(name)
        if finished is not None:
            self.record.remove_checkpoint(f"tuning-{policy.name}")  # left where the process died just before
            return Candidate(policy, self._reader(name), Measure(finished["loss"], finished["score"]))
        net = self.problem.placed_supernet()
        prepare(net)
        phase = self._weights_phase(f"tuning-{policy.name}", net, epochs, rates[0], teacher)
        phase.kind, phase.point = kind, policy.name
        phase.optimizers.append(self.step_optimizer(net.quantizers.parameters(), rates[1]))
        if self.frozen:
            freeze(net.model)
            del phase.optimizers[0]
        self.train(phase)
        net.reestimate_norms(inputs(self.problem, self.settings.norm_batches))
        result = evaluate_policy(self.problem, net, policy, "validation")
        self.record.save_checkpoint(name, net.state_dict(), {"loss": result.loss, "score": result.score})
        self.record.remove_checkpoint(phase.name)
        unit = self.task.unit
        self.progress.note(
            f"{policy.name}: validation loss {result.loss:.4f}, {self.task.metric} {result.score:.2f} {unit}"
        )
        return Candidate(policy, self._reader(name), result)

    def _reader(self, name: str) -> Callable[[], Supernet]:
        """Returns what reads a policy's network from its checkpoint."""

        def read() -> Supernet:
            loaded = self.record.load_checkpoint(name)
            if loaded is None:
                raise RunError(f"{self.record.path} has lost the checkpoint {name!r}; --resume trains it again")
            net = self.problem.placed_supernet()
            self.record.restore(name, net, loaded[0])
            return net

        return read

    # -- judging ------------------------------------------------------------------------------------------------

    def present(self, candidates: Sequence[Candidate], teacher: Supernet) -> Front:
        """Judges candidates against the float baseline and writes the front into the run directory."""
        baseline, epochs = self.train_baseline(teacher)
        reference = self._figures_of(baseline, "validation")
        tested = self.test(judge(self.problem, candidates, reference, epochs), baseline)
        self.record.write_json("front.json", tested.document())
        for point in tested.points:
            folder = "policies" if point.within_budgets else "references"
            self.record.write_text(f"{folder}/{point.policy.name}.json", point.policy.to_json())
        return tested

    def test(self, front: Front, baseline: Supernet) -> Front:
        """Reads the test split, once, for the float baseline and every point."""
        points = [
            replace(point, test=evaluate_policy(self.problem, point.net, point.policy, "test"))
            for point in front.points
        ]
        return replace(front, points=tuple(points), float_test=self._figures_of(baseline, "test"))

    def _figures_of(self, baseline: Supernet, split: Split) -> Measure:
        """Returns the float baseline's figures: those in the run directory, or measured once and kept there."""
        weights = baseline.model.state_dict()
        key = hashlib.sha256(b"".join(weights[name].cpu().contiguous().numpy().tobytes() for name in sorted(weights)))
        known = distributed.from_first(lambda: known_figures(self.record))
        if known.get("weights") != key.hexdigest():
            known = {"weights": key.hexdigest()}
        if split not in known:
            known[split] = vars(measure_as_is(self.problem, baseline, split))
            self.record.write_json(FIGURES, known)
        return Measure(**known[split])
