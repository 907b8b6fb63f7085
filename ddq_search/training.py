"""One training phase: epochs over a source, resumable after every epoch, the same whether it was interrupted or not.

A phase is described by what differs (parameters, the loss of one batch, the learning rates); the loop, checkpoints,
history and progress are the same for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddq_search import distributed
from ddq_search.batches import TrainingBatches
from ddq_search.compute import Compute
from ddq_search.errors import RunError
from ddq_search.loss_scale import LossScale
from ddq_search.quantizers.contract import Quantizer
from ddq_search.record import RunDirectory


class Progress(Protocol):
    """Who is told how far a run is."""

    def begin(self, phase: str, total: int, done: int) -> None:
        """A phase of ``total`` steps starts, ``done`` of them already covered by a checkpoint."""

    def step(self, facts: Mapping[str, str]) -> None:
        """One more step; ``facts`` are short texts such as the loss."""

    def note(self, text: str) -> None:
        """Something the user should read."""


class Silent:
    """Tells nobody."""

    def begin(self, phase: str, total: int, done: int) -> None:
        """Ignores."""

    def step(self, facts: Mapping[str, str]) -> None:
        """Ignores."""

    def note(self, text: str) -> None:
        """Ignores."""


BatchLoss = Callable[[Tensor, Tensor, int], tuple[Tensor, Mapping[str, str]]]
"""(inputs, targets, step number) → loss to be differentiated and facts for the progress line."""


@dataclass
class Phase:
    """What a training phase needs.

    Attributes:
        name: name of its checkpoint; ``kind`` and ``point`` go into the history.
        module: what is trained; all its tensors are checkpointed.
        optimizers: (optimizer, peak learning rate) pairs; ``schedule`` scales every rate. The gradient of the first
            one's parameters is clipped.
        batch_loss: what a batch contributes.
        after_backward: called after the backward pass of each batch.
        batch_leaves: returns what else gets a gradient from a batch, besides the parameters.
        before_step: called before the optimizer step.
        after_step: called after each optimizer step.
        after_overflow: called instead of both where gradients overflow and the step is left out.
        epochs: how many.
        schedule: fraction of the phase done, in [0, 1) → factor of the peak rates.
        after_epoch: returns what the epoch's history row should hold besides the training loss.
        extra: further tensors to checkpoint (multipliers); changed in place.
        point: which point of the front this trains, if it is one.
        gradient_clip: largest norm of that gradient.
        accumulate: batches per optimizer step; their gradients are averaged.
        averaged: moving average of the module, which the module becomes when the phase ends.
        loss_scale: for float16; a step whose gradients overflow is left out.
    """

    name: str
    kind: str
    module: nn.Module
    optimizers: list[tuple[torch.optim.Optimizer, float]]
    batch_loss: BatchLoss
    epochs: int
    schedule: Callable[[float], float]
    after_backward: Callable[[], None] | None = None
    batch_leaves: Callable[[], list[Tensor]] | None = None
    before_step: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    after_overflow: Callable[[], None] | None = None
    after_epoch: Callable[[int], Mapping[str, Any]] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    point: str | None = None
    gradient_clip: float = 5.0
    accumulate: int = 1
    averaged: AveragedModel | None = None
    loss_scale: LossScale | None = None


def cosine(fraction: float) -> float:
    """Warm-up over the first 5 %, then half a cosine down to 0."""
    return min(1.0, (fraction + 0.005) / 0.05) * 0.5 * (1 + math.cos(math.pi * fraction))


def step(fraction: float) -> float:
    """Warm-up over the first 5 %, then a tenth of the rate from the middle and a hundredth from three quarters on."""
    return min(1.0, (fraction + 0.005) / 0.05) * (1.0 if fraction < 0.5 else 0.1 if fraction < 0.75 else 0.01)


def constant(fraction: float) -> float:
    """Warm-up over the first 5 %, then the full rate."""
    return min(1.0, (fraction + 0.005) / 0.05)


SCHEDULES: Mapping[str, Callable[[float], float]] = {"cosine": cosine, "step": step, "constant": constant}


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """Returns an exponential moving average of a module's parameters and buffers."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def run_phase(
    phase: Phase,
    source: TrainingBatches,
    record: RunDirectory,
    *,
    seed: int,
    batch_size: int,
    compute: Compute,
    progress: Progress,
) -> None:
    """Trains a phase to its end, starting from its checkpoint when there is one.

    Under ``torchrun``, each process computes its part of every batch (`ddq_search.distributed`).

    Raises:
        RunError: the loss or a weight is not finite, or processes no longer agree; the last good checkpoint stays.
    """
    start = _restore(phase, record)
    distributed.require_same(_state(phase), f"at the start of phase {phase.name!r}")
    record.drop_history(phase.kind, phase.point, start)
    per_epoch = source.train_batches(batch_size)
    steps = Steps(phase, compute, per_epoch)
    progress.begin(phase.name, phase.epochs * per_epoch, start * per_epoch)
    for epoch in range(start, phase.epochs):
        began = time.perf_counter()
        phase.module.train()
        losses, count = torch.zeros(()), 0
        for x, y in source.train(seed=seed, epoch=_epoch_key(phase.name, epoch), batch_size=batch_size):
            loss, facts = steps.batch(x, y, epoch * per_epoch + count)
            losses += loss.cpu()
            count += 1
            progress.step({"epoch": f"{epoch + 1}/{phase.epochs}", **facts})
        distributed.sum_in_place([losses])
        if not all(torch.isfinite(p).all() for p in phase.module.parameters()):
            raise _diverged(phase, f"weights are not finite after epoch {epoch + 1}")
        row = {"phase": phase.kind, "point": phase.point, "epoch": epoch, "train_loss": float(losses) / max(count, 1)}
        row |= {"seconds": round(time.perf_counter() - began, 3)}
        row |= {} if phase.loss_scale is None else {"loss_scale": phase.loss_scale.scale}
        row |= phase.after_epoch(epoch) if phase.after_epoch else {}
        record.append_history(row)
        if phase.averaged is not None and epoch + 1 == phase.epochs:
            phase.module.load_state_dict(phase.averaged.module.state_dict())
        state = _state(phase)
        distributed.require_same(state, f"after epoch {epoch + 1} of phase {phase.name!r}")
        record.save_checkpoint(phase.name, state, {"epoch": epoch + 1, "epochs": phase.epochs})


class Steps:
    """The steps of a phase, batch by batch.

    Args:
        phase: what is trained.
        compute: where.
        per_epoch: batches of an epoch.
    """

    def __init__(self, phase: Phase, compute: Compute, per_epoch: int) -> None:
        self._phase, self._compute, self._per_epoch = phase, compute, per_epoch
        self._clipped = [p for group in phase.optimizers[0][0].param_groups for p in group["params"]]
        self._quantizers = [module for module in phase.module.modules() if isinstance(module, Quantizer)]
        self._finite = True

    def batch(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Mapping[str, str]]:
        """Computes batch ``number`` of the phase, and the optimizer step where it is the last of one.

        Returns:
            The loss of this process's part of the batch, and what the progress line shows.

        Raises:
            RunError: the loss is not finite.
        """
        phase, index = self._phase, number % self._per_epoch
        first = index % phase.accumulate == 0
        last = index + 1 == self._per_epoch or (index + 1) % phase.accumulate == 0
        if first:
            _begin_step(phase, number / (phase.epochs * self._per_epoch))
            self._finite = True
        part = distributed.part_of(len(x))
        x, y = (x, y) if part is None else (part.of(x), part.of(y))
        with distributed.dividing(part), self._compute.autocast():
            loss, facts = phase.batch_loss(self._compute.place(x), self._compute.move(y), number)
        if part is not None:
            loss = loss * part.weight
        if not math.isfinite(float(loss.detach())):
            epoch = number // self._per_epoch + 1
            raise _diverged(phase, f"the loss is not finite in epoch {epoch}, batch {index + 1}")
        shared = min(phase.accumulate, self._per_epoch - index // phase.accumulate * phase.accumulate)
        self._finite &= _backward(phase, loss / shared, last=last)
        if self._finite and phase.after_backward is not None:
            phase.after_backward()
        if last:
            _end_step(phase, self._clipped, self._quantizers, finite=self._finite)
        return loss.detach(), facts


_RATES = {"float": "float_rate", "finetune": "finetune_rate"}


def _begin_step(phase: Phase, fraction: float) -> None:
    for optimizer, rate in phase.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * phase.schedule(fraction)
        optimizer.zero_grad(set_to_none=True)


def _backward(phase: Phase, loss: Tensor, *, last: bool) -> bool:
    """Gives leaves and parameters their gradients, summed over processes; returns whether those in use are finite.

    Leaves have a gradient after every batch, parameters after the last one of a step. Where nothing is left to learn
    (weights frozen, steps calibrated for good) there is none.
    """
    scale = phase.loss_scale
    if loss.requires_grad:
        (loss if scale is None else loss * scale.scale).backward()
    leaves = [] if phase.batch_leaves is None else phase.batch_leaves()
    if last:
        leaves += [p for optimizer, _ in phase.optimizers for group in optimizer.param_groups for p in group["params"]]
    gradients = [leaf.grad for leaf in dict.fromkeys(leaves) if leaf.grad is not None]
    distributed.sum_in_place(gradients)
    return scale is None or scale.restore(gradients)


def _end_step(phase: Phase, clipped: list[Tensor], quantizers: list[Quantizer], *, finite: bool) -> None:
    if phase.loss_scale is not None:
        phase.loss_scale.update(finite)
        if phase.loss_scale.exhausted:
            raise _diverged(phase, "gradients exceed float16 (training.precision = 'bf16' has a wider range)")
    if not finite:
        if phase.after_overflow is not None:
            phase.after_overflow()
        return
    if phase.before_step is not None:
        phase.before_step()
    for quantizer in quantizers:
        quantizer.limit_gradients()
    torch.nn.utils.clip_grad_norm_(clipped, phase.gradient_clip)
    for optimizer, _ in phase.optimizers:
        optimizer.step()
    if phase.after_step is not None:
        phase.after_step()
    if phase.averaged is not None:
        phase.averaged.update_parameters(phase.module)


def _diverged(phase: Phase, fact: str) -> RunError:
    key = f"training.{_RATES.get(phase.kind, 'joint_rate')}"
    return RunError(
        f"training diverged in phase {phase.name!r}: {fact}. Search with a lower {key} and another --out "
        f"(--set {key}=…), or check the data"
    )


def _epoch_key(name: str, epoch: int) -> int:
    """Different phases see different orders of the data; points of one front see the same."""
    phase = {"float": 0, "joint": 1, "baseline": 2}.get(name, 3)
    return phase * 100_000 + epoch


def _extra(phase: Phase) -> dict[str, Tensor]:
    average = {} if phase.averaged is None else phase.averaged.state_dict()
    scale = {} if phase.loss_scale is None else {"loss_scale": phase.loss_scale.state}
    return {**phase.extra, **scale, **{f"average.{key}": value for key, value in average.items()}}


def _state(phase: Phase) -> dict[str, Tensor]:
    tensors = {f"module.{key}": value for key, value in phase.module.state_dict().items()}
    tensors |= {f"extra.{key}": value for key, value in _extra(phase).items()}
    for number, (optimizer, _) in enumerate(phase.optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    return {key: value.clone() for key, value in tensors.items()}


def _restore(phase: Phase, record: RunDirectory) -> int:
    """Loads the phase's checkpoint into its objects; returns the number of epochs it covers."""
    loaded = record.load_checkpoint(phase.name)
    if loaded is None:
        return 0
    tensors, facts = loaded
    own = {key.removeprefix("module."): value for key, value in tensors.items() if key.startswith("module.")}
    record.restore(phase.name, phase.module, own)
    if int(facts["epoch"]) >= phase.epochs:
        return phase.epochs
    for key, value in _extra(phase).items():
        value.copy_(tensors[f"extra.{key}"])
    for number, (optimizer, _) in enumerate(phase.optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                _, _, index, entry = key.split(".", 3)
                state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["epoch"])
