"""Which points form the front, and which of them is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddq_search.cost import COSTS, FLASH, LATENCY, PEAK_RAM, keeps
from ddq_search.errors import PolicyError
from ddq_search.feasibility import operation_costs
from ddq_search.graph import operations
from ddq_search.pareto import non_dominated
from ddq_search.policy import Policy
from ddq_search.problem import Problem
from ddq_search.supernet import Supernet
from ddq_search.task import Measure


@dataclass(frozen=True)
class Candidate:
    """A fine-tuned policy and its validation figures.

    Attributes:
        policy: the policy.
        load: reads its network, which is not kept in memory.
        validation: its figures.
    """

    policy: Policy
    load: Callable[[], Supernet]
    validation: Measure

    @property
    def net(self) -> Supernet:
        """Its network, read anew each time; under ``torchrun`` all processes ask for it, or none."""
        return self.load()


@dataclass(frozen=True)
class Point:
    """A judged policy: price, figures, and whether it is on the front.

    Attributes:
        candidate: the policy as it was fine-tuned; `policy`, `net` and `validation` are its own.
        policy: with what was found out about it.
        price: cost → value.
        within_budgets: whether it keeps every budget.
        on_front: whether it is on the front.
        test: figures on the test split.
    """

    candidate: Candidate
    policy: Policy
    price: Mapping[str, float]
    within_budgets: bool
    on_front: bool
    test: Measure | None = None

    @property
    def net(self) -> Supernet:
        """See `Candidate.net`."""
        return self.candidate.net

    @property
    def validation(self) -> Measure:
        """Figures on the validation split."""
        return self.candidate.validation


@dataclass(frozen=True)
class Front:
    """The result of a search.

    Attributes:
        problem: what was searched.
        points: all judged policies, searched ones first.
        best: name of the policy with the best validation score within every budget, ties by latency.
        float_validation: figures of the float baseline of equal total epochs.
        float_epochs: epochs that the float baseline got.
        float_test: likewise, on the test split.
    """

    problem: Problem
    points: tuple[Point, ...]
    best: str
    float_validation: Measure
    float_epochs: int
    float_test: Measure | None = None

    def point(self, name: str) -> Point:
        """Returns a point by name, or the best one for ``best``."""
        wanted = self.best if name == "best" else name
        for point in self.points:
            if point.policy.name == wanted:
                return point
        raise PolicyError(f"no policy {name!r} in this run; it has {', '.join(p.policy.name for p in self.points)}")

    def document(self) -> dict[str, Any]:
        """Returns what front.json holds."""
        problem = self.problem
        floats = {**_figures("val", self.float_validation), **_figures("test", self.float_test)}
        return {
            "format": "ddq-search front",
            "version": 1,
            "model": problem.config.model.name,
            "data": problem.source.name,
            "seed": problem.config.seed,
            "method": problem.config.search.method,
            "task": {
                "metric": problem.task.metric,
                "direction": problem.task.direction,
                "unit": problem.task.unit,
                "loss": getattr(problem.task, "loss_name", "loss"),
            },
            "device": device_facts(problem),
            "budgets": dict(problem.budgets),
            "reference": dict(problem.pricing.reference),
            "float": {**floats, "epochs": self.float_epochs},
            "best": self.best,
            "points": [self._entry(point) for point in self.points],
        }

    def _entry(self, point: Point) -> dict[str, Any]:
        tables = self.problem.pricing.tables
        by_cost = {cost: operation_costs(tables, cost, point.policy.bits) for cost in (LATENCY, FLASH)}
        names = [op.name for op in operations(self.problem.graph)]
        live = tables.step_sums(tables.one_hot(point.policy.bits)).tolist()
        return {
            "name": point.policy.name,
            "origin": point.policy.origin,
            "within_budgets": point.within_budgets,
            "on_front": point.on_front,
            **_figures("val", point.validation),
            **_figures("test", point.test),
            LATENCY: point.price[LATENCY],
            FLASH: point.price[FLASH],
            PEAK_RAM: point.price[PEAK_RAM],
            "arena_bytes": point.price[PEAK_RAM],
            **point.policy.by_role(),
            "operations": [{"name": n, **{cost: by_cost[cost].get(n, 0.0) for cost in by_cost}} for n in names],
            "live_bytes": [
                {"step": i, "operation": names[i] if len(live) == len(names) else str(i), "bytes": value}
                for i, value in enumerate(live)
            ],
        }


def judge_points(problem: Problem, candidates: Sequence[Candidate]) -> list[Point]:
    """Prices every candidate and marks the front.

    The front: searched policies that are non-dominated in (validation loss, each budgeted cost; latency and flash
    when nothing is budgeted). A policy beyond a budget cannot dominate one within it, so the front beyond the budgets
    only adds what a looser budget would buy.
    """
    points = [_point(problem, candidate) for candidate in candidates]
    axes = list(problem.budgets) or [LATENCY, FLASH]
    searched = [i for i, p in enumerate(points) if p.policy.origin != "uniform"]
    rows = np.array([[points[i].validation.loss, *(points[i].price[axis] for axis in axes)] for i in searched])
    for i, keep in zip(searched, non_dominated(rows), strict=True):
        points[i] = replace(points[i], on_front=bool(keep))
    return points


def judge(problem: Problem, candidates: Sequence[Candidate], float_validation: Measure, float_epochs: int) -> Front:
    """Returns the judged points and names the best: highest validation score within every budget, ties by latency."""
    points = judge_points(problem, candidates)
    sign = 1 if problem.task.direction == "max" else -1
    allowed = [p for p in points if p.within_budgets]
    best = max(allowed, key=lambda p: (sign * p.validation.score, -p.price[LATENCY]))
    return Front(problem, tuple(points), best.policy.name, float_validation, float_epochs)


def _point(problem: Problem, candidate: Candidate) -> Point:
    price = problem.pricing.price(candidate.policy.bits)
    within = keeps(price, problem.budgets)
    facts = {
        "device": problem.device.name,
        **{cost: price[cost] for cost in COSTS if cost in price},
        **_figures("val", candidate.validation),
        "within_budgets": within,
    }
    return Point(candidate, replace(candidate.policy, facts=facts), price, within, False)


def device_facts(problem: Problem) -> dict[str, Any]:
    """Returns what front.json says about the device."""
    device = problem.device
    named = {key: getattr(device, key, None) for key in ("core", "runtime", "clock_hz")}
    return {"name": device.name, **named, "arithmetic": device.arithmetic, "calibration": device.calibration}


def _figures(prefix: str, values: Measure | None) -> dict[str, float | None]:
    return {
        f"{prefix}_loss": values.loss if values else None,
        f"{prefix}_score": values.score if values else None,
    }
