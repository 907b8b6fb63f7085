"""Looks at a trial while it trains: validation losses on the way, and whether it is worth going on.

About eight times during the training of gates (joint, or on frozen weights), the policy that would be chosen now for
the budgets themselves is measured on the validation split, fake-quantized, with batch-norm statistics of its own;
afterwards every fine-tuned policy within the budgets counts with its final loss. A pruner sees these values. In a
multi-objective study, which Optuna cannot prune, a trial stops when it lies far behind the non-dominated ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState
from torch import Tensor

from ddq_search import front as fronts
from ddq_search.errors import RunError
from ddq_search.problem import Problem, inputs, measure_as_is
from ddq_search.record import RunDirectory

LOSSES = "losses"
"""User attribute: label (``joint 5``, ``p00``) → [step, loss]; it outlives the worker."""
_LOOKS = 8
"""Looks at the training of gates, at most one per epoch."""
_COMPANY = 4
"""Non-dominated trials that must have a loss at the same moment before one is called hopeless."""
_GATED = ("joint", "gates")
"""Checkpoints that hold gates."""
_WITHIN_BUDGETS = ("p", "x")
"""First letters of searched policies within every budget (`ddq_search.front`, `ddq_search.stages`)."""


class Hopeless(Exception):  # noqa: N818 - no error
    """A trial lies so far behind the others that it is stopped; the message says how far."""


class WatchedRun(RunDirectory):
    """A run directory that measures the trial whenever something worth measuring is saved.

    Args:
        path: the directory.
        problem: what is searched.
        study: the study, for the losses of other trials.
        trial: the trial.
        stop_hopeless: whether a multi-objective trial far behind is stopped.
    """

    def __init__(self, path: Path, problem: Problem, study: optuna.Study, trial: Trial, *, stop_hopeless: bool) -> None:
        super().__init__(path)
        self._problem, self._study, self._trial = problem, study, trial
        self._scalar, self._stop_hopeless = len(study.directions) == 1, stop_hopeless
        self._losses: dict[str, list[float]] = dict(trial.user_attrs.get(LOSSES, {}))
        self._reported: set[int] = set()
        if self._scalar:
            for step, loss in self._losses.values():  # of a worker that died
                self._report(int(step), loss)

    def save_checkpoint(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Measures first: where a trial dies in between, it measures the same again.

        Raises:
            RunError: the validation loss is not finite.
            optuna.TrialPruned: the pruner does not believe in this trial.
            Hopeless: we do not.
        """
        label = name.removeprefix("policy-")
        if name in _GATED and (name == "gates" or self._problem.config.search.mode == "joint"):
            epoch, epochs = int(facts["epoch"]), int(facts["epochs"])
            if epoch % max(1, epochs // _LOOKS) == 0 or epoch == epochs:
                self._judge(f"{name} {epoch}", epoch, self._loss(name, tensors))
        elif label != name and label[0] in _WITHIN_BUDGETS:
            looks = [int(step) for known, (step, _) in self._losses.items() if " " in known]
            tuned = [known for known in self._losses if " " not in known]
            place = tuned.index(label) if label in tuned else len(tuned)
            best = min([facts["loss"], *(self._losses[earlier][1] for earlier in tuned[:place])])
            self._judge(label, max(looks, default=0) + 1 + place, best)
        super().save_checkpoint(name, tensors, facts)

    def _judge(self, label: str, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(f"the validation loss is not finite ({label}); the settings of this trial diverge")
        self._losses[label] = [step, loss]
        self._trial.set_user_attr(LOSSES, self._losses)
        if self._scalar:
            self._report(step, loss)
            if self._trial.should_prune():
                raise optuna.TrialPruned(f"pruned at {label}: validation loss {loss:.4g}")
        elif self._stop_hopeless:
            limit = self._limit(label)
            if limit is not None and loss > limit:
                raise Hopeless(f"hopeless at {label}: validation loss {loss:.4g} is above {limit:.4g}")

    def _report(self, step: int, loss: float) -> None:
        if step not in self._reported:
            self._reported.add(step)
            self._trial.report(loss, step)

    def _limit(self, label: str) -> float | None:
        """Returns the worst loss at this moment among non-dominated trials plus half their range, or None."""
        others = [
            trial.user_attrs[LOSSES][label][1]
            for trial in self._study.best_trials
            if trial.state == TrialState.COMPLETE and label in trial.user_attrs.get(LOSSES, {})
        ]
        if len(others) < _COMPANY:
            return None
        worst, best = max(others), min(others)
        return float(worst + 0.5 * (worst - best))

    def _loss(self, name: str, tensors: Mapping[str, Tensor]) -> float:
        """Returns the validation loss of the policy that would be chosen now for the budgets themselves."""
        problem = self._problem
        settings, search = problem.config.training, problem.config.search
        aims = fronts.aims(problem.pricing, problem.budgets, search.points, search.relaxed_points)
        reference = problem.pricing.reference
        widest = max(
            (index for index, aim in enumerate(aims) if aim.origin == "search"),
            key=lambda index: sum(limit / reference[cost] for cost, limit in aims[index].limits.items()),
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net = problem.placed_supernet(sets=len(aims))
            own = {key.removeprefix("module."): value for key, value in tensors.items() if key.startswith("module.")}
            self.restore(name, net, own)
            bits = fronts.settled(problem.pricing, net.gates.scores(widest).numpy(), aims[widest].limits, [])
            if bits is None:
                raise RunError("no policy within the budgets was found on the way; this is a defect, please report it")
            net.set_policy(bits)
            net.reestimate_norms(inputs(problem, settings.calibration_batches))
            return measure_as_is(problem, net, "validation").loss
