"""NSGA-II over policies, by Optuna: loss without training against the budgeted costs, the budgets as constraints.

An individual is a policy, one categorical gene per variable; objectives are the loss that is handed in and the costs of
the axes; a cost beyond its limit is a violated constraint, by its relative excess. The first individuals are given:
where one policy in a million is within the budgets, a random generation finds none of them.

Source: Deb, Pratap, Agarwal, Meyarivan, A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, IEEE Transactions
on Evolutionary Computation 6(2), 2002, with constraint domination; `optuna.samplers.NSGAIISampler`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from ddq_search.baselines.evaluated import Evaluated
from ddq_search.feasibility import Pricing

_GENERATIONS = 8
"""At least so many, as far as the evaluations last."""
_LARGEST_POPULATION = 50
_EXCESS = "excess"


def evolve(
    pricing: Pricing,
    loss: Callable[[Mapping[str, int]], float],
    limits: Mapping[str, float],
    axes: Sequence[str],
    evaluations: int,
    seed: int,
    first: Sequence[Mapping[str, int]] = (),
) -> list[Evaluated]:
    """Returns everything that was evaluated, each policy once, in the order of discovery.

    Args:
        pricing: prices of the policies.
        loss: loss of a policy; what comes again is not asked again, but counts.
        limits: cost → largest allowed value.
        axes: the costs that are minimised together with the loss.
        evaluations: number of individuals.
        seed: the same seed gives the same result.
        first: the first individuals; the rest of the first generation is random.
    """
    space = pricing.tables.space
    genes: dict[str, BaseDistribution] = {v.name: CategoricalDistribution(v.candidates) for v in space.variables}
    study = _study(1 + len(axes), population(evaluations), seed)
    for individual in first:
        study.enqueue_trial(dict(individual))
    found: dict[tuple[int, ...], Evaluated] = {}
    for _ in range(evaluations):
        trial = study.ask(genes)
        policy = {variable.name: int(trial.params[variable.name]) for variable in space.variables}
        key = tuple(policy.values())
        if key not in found:
            found[key] = Evaluated(policy, pricing.price(policy), loss(policy))
        price = found[key].price
        trial.set_user_attr(_EXCESS, [price[cost] / limit - 1.0 for cost, limit in limits.items()])
        study.tell(trial, [found[key].loss, *(price[cost] for cost in axes)])
    return list(found.values())


def population(evaluations: int) -> int:
    """Returns the size of a generation.

    >>> population(200), population(4000), population(10)
    (25, 50, 2)
    """
    return max(2, min(_LARGEST_POPULATION, evaluations // _GENERATIONS))


def _study(objectives: int, population: int, seed: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constraints by function are the older of two ways, known to all versions
        sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed, constraints_func=_violations)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)


def _violations(trial: FrozenTrial) -> Sequence[float]:
    excess: list[float] = trial.user_attrs[_EXCESS]
    return excess
