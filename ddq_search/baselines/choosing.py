"""Ways of choosing policies by name: one policy per aim of a front, where the way finds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ddq_search.baselines.evaluated import Evaluated, best_within
from ddq_search.baselines.greedy import greedy
from ddq_search.baselines.ilp import least_sensitive
from ddq_search.baselines.random_policies import random_policies
from ddq_search.baselines.rusci import memory_driven, require_known_costs, shortfall
from ddq_search.baselines.sensitivity import Score, sensitivities
from ddq_search.baselines.uniform_lsq import uniform_policies, widest_uniform
from ddq_search.baselines.untrained import Untrained
from ddq_search.cost import FLASH, LATENCY
from ddq_search.errors import BudgetError, ConfigError
from ddq_search.front import Aim, Origin
from ddq_search.problem import Problem
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet

Limits = Mapping[str, float]
Chosen = list[tuple[Origin, dict[str, int]]]
_Way = Callable[[Stages, Supernet, Sequence[Limits]], Sequence[dict[str, int] | None]]


def require_able(problem: Problem, kind: str) -> None:
    """Returns if a way of choosing can serve the budgets at all; asked before anything is trained.

    Raises:
        BudgetError: it cannot; says why and what to do.
        ConfigError: there is no such way.
    """
    if kind not in KINDS:
        raise ConfigError(f"no way of choosing policies is called {kind!r}; known: {', '.join(KINDS)}")
    if kind == "rusci":
        require_known_costs(problem.budgets)
    if kind == "lsq-uniform":
        uniform_policies(problem.pricing, problem.budgets)


def choose(stages: Stages, teacher: Supernet, kind: str, aims: Sequence[Aim]) -> Chosen:
    """Returns distinct policies, each with the origin of the aim that it meets.

    Args:
        stages: the stages of a run; scores that are computed are kept in its directory.
        teacher: the trained float model.
        kind: one of `KINDS`.
        aims: what the policies aim at.

    Raises:
        BudgetError: nothing was found within the budgets.
        ConfigError: there is no such way.
    """
    problem = stages.problem
    require_able(problem, kind)
    found: Chosen = []
    for aim, policy in zip(aims, _WAYS[kind](stages, teacher, [aim.limits for aim in aims]), strict=True):
        if policy is not None and policy not in [bits for _, bits in found]:
            found.append((aim.origin, policy))
    if not any(origin == "search" for origin, _ in found):
        reason = shortfall(problem.pricing, problem.budgets) if kind == "rusci" else _REMEDIES[kind]
        raise BudgetError(f"{kind}: found no policy within the budgets, though there are some; {reason}")
    return found


def every_uniform(problem: Problem) -> Chosen:
    """Returns every pair of candidate bitwidths within the budgets: ``lsq-uniform`` as a method of its own.

    Raises:
        BudgetError: no pair is.
    """
    return [("search", policy) for policy in uniform_policies(problem.pricing, problem.budgets).values()]


def _uniform(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
    return [widest_uniform(stages.problem.pricing, limit) for limit in limits]


def _random(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
    return random_policies(stages.problem.pricing, limits, stages.problem.config.seed)


def _random_search(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
    """The best of as many random policies as NSGA-II evaluates, their aims in turn, by the same loss."""
    problem, count = stages.problem, stages.problem.config.search.evaluations
    loss = Untrained(problem, teacher, stages.settings.calibration_batches).distance
    turns = [limits[number % len(limits)] for number in range(count)]
    drawn = random_policies(problem.pricing, turns, problem.config.seed, distinct=False)
    return _best([Evaluated(bits, problem.pricing.price(bits), loss(bits)) for bits in drawn if bits], limits)


def _nsga2(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
    """One evolution for all aims, within the loosest of their limits, from random policies within the limits."""
    from ddq_search.baselines.nsga2 import evolve, population

    problem, count = stages.problem, stages.problem.config.search.evaluations
    loss = Untrained(problem, teacher, stages.settings.calibration_batches).distance
    loosest = {cost: max(limit[cost] for limit in limits) for cost in problem.budgets}
    axes = list(problem.budgets) or [LATENCY, FLASH]
    ends = [policy for policy in (problem.pricing.cheapest(axis, problem.budgets) for axis in axes) if policy]
    turns = [limits[number % len(limits)] for number in range(population(count) - len(ends))]
    drawn = random_policies(problem.pricing, turns, problem.config.seed, distinct=False)
    first = [*ends, *(policy for policy in drawn if policy)]
    return _best(evolve(problem.pricing, loss, loosest, axes, count, problem.config.seed, first), limits)


def _best(evaluated: Sequence[Evaluated], limits: Sequence[Limits]) -> list[dict[str, int] | None]:
    found: list[dict[str, int] | None] = []
    for limit in limits:
        found.append(best_within(evaluated, limit, [policy for policy in found if policy is not None]))
    return found


def _greedy(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
    scores = sensitivities(stages, teacher, "measured")
    return [greedy(stages.problem.pricing, scores, limit) for limit in limits]


def _ilp(score: Score) -> _Way:
    def way(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
        scores = sensitivities(stages, teacher, score)
        found: list[dict[str, int] | None] = []
        for limit in limits:
            taken = [policy for policy in found if policy is not None]
            found.append(least_sensitive(stages.problem.pricing, scores, limit, taken))
        return found

    return way


def _rusci(stages: Stages, teacher: Supernet, limits: Sequence[Limits]) -> Sequence[dict[str, int] | None]:
    return [memory_driven(stages.problem.pricing, limit) for limit in limits]


_WAYS: dict[str, _Way] = {
    "lsq-uniform": _uniform,
    "random": _random,
    "random-search": _random_search,
    "greedy": _greedy,
    "ilp": _ilp("measured"),
    "hawq-ilp": _ilp("hessian"),
    "nsga2": _nsga2,
    "rusci": _rusci,
}
KINDS = tuple(_WAYS)
"""Names of the ways."""
_MORE = "raise search.evaluations, or take another method"
_REMEDIES = {
    "lsq-uniform": "loosen a budget",
    "random-search": _MORE,
    "nsga2": _MORE,
    "greedy": "no single step saves enough; take ilp, which sees steps that pay only together",
    "random": "please report this defect",
    "ilp": "please report this defect",
    "hawq-ilp": "please report this defect",
}
