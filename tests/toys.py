"""Toy search spaces, devices and data: small enough for brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.graph import ModelGraph, Operation
from ddq_search.space import SearchSpace, Variable


def toy_space(candidates: Sequence[Sequence[int]]) -> SearchSpace:
    """Returns a space of weight variables ``weights/v0``, ``weights/v1``, …"""
    variables = tuple(Variable(f"weights/v{i}", "weights", tuple(c), (f"v{i}",)) for i, c in enumerate(candidates))
    return SearchSpace(variables, {v.key: v.name for v in variables}, {})


def toy_tables(candidates: Sequence[Sequence[int]], seed: int, *, integers: bool = False) -> CostTables:
    """Returns random factors over one, two and three variables for every cost, and constants."""
    space, rng = toy_space(candidates), np.random.default_rng(seed)
    factors = []
    for cost in (LATENCY, FLASH, PEAK_RAM):
        steps = itertools.cycle([0, 1, 3] if cost == PEAK_RAM else [None])
        factors.append(Factor(cost, "v0", "call", (), np.array(float(rng.integers(0, 5))), step=next(steps)))
        for _ in range(len(candidates) + 2):
            count = int(rng.integers(1, min(3, len(candidates)) + 1))
            chosen = rng.permutation(len(candidates))[:count]
            shape = tuple(len(candidates[i]) for i in chosen)
            table = rng.integers(0, 40, shape).astype(float) if integers else rng.uniform(0, 40, shape)
            names = tuple(f"weights/v{i}" for i in chosen)
            factors.append(Factor(cost, f"v{chosen[0]}", "compute", names, table, step=next(steps)))
    return CostTables(space, factors)


def all_policies(space: SearchSpace) -> list[dict[str, int]]:
    """Returns every policy of a small space."""
    names = [v.name for v in space.variables]
    return [dict(zip(names, bits, strict=True)) for bits in itertools.product(*(v.candidates for v in space.variables))]


def by_hand(tables: CostTables, policy: Mapping[str, int]) -> dict[str, float]:
    """Prices a policy by looking entries up, one factor at a time."""
    result, steps = {LATENCY: 0.0, FLASH: 0.0}, {}
    for factor in tables.factors:
        index = tuple(tables.space[name].candidates.index(policy[name]) for name in factor.variables)
        if factor.cost == PEAK_RAM:
            steps[factor.step or 0] = steps.get(factor.step or 0, 0.0) + float(factor.table[index])
        else:
            result[factor.cost] += float(factor.table[index])
    return result | {PEAK_RAM: max(steps.values())}


class ToyDevice:
    """Executes 2, 4 and 8 bits; its prices are whatever factors it is given."""

    name = "toy"
    arithmetic = "single"
    calibration = "uncalibrated: a toy"

    def __init__(self, tables: CostTables, fragments: Mapping[tuple[int, ...], int] | None = None) -> None:
        self.tables = tables
        self.fragments = fragments or {}

    def legal_weight_bits(self, op: Operation) -> tuple[int, ...]:
        return (2, 4, 8)

    def legal_activation_bits(self, op: Operation) -> tuple[int, ...]:
        return (2, 4, 8)

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        return list(self.tables.factors)

    def arena_bytes(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> int:
        live = self.tables.price(choices)[PEAK_RAM]
        return int(np.ceil(live)) + self.fragments.get(tuple(choices.values()), 0)


class AnyDevice:
    """Executes every bitwidth and prices nothing: for tests that only need a space."""

    name = "any"

    def legal_weight_bits(self, op: Operation) -> tuple[int, ...]:
        return (2, 3, 4, 5, 6, 7, 8)

    legal_activation_bits = legal_weight_bits


class ToySource:
    """Random images of two classes that differ in their mean; batches depend on (seed, epoch) only."""

    name = "toy"
    fingerprint = "toy"
    input_grid = None

    def __init__(self, shape: tuple[int, ...] = (3, 6, 6), batches: int = 3) -> None:
        self.input_shape, self.batches = shape, batches

    def _batch(self, seed: int, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 2, (size,), generator=generator)
        x = torch.randn(size, *self.input_shape, generator=generator)
        return x + (y.float() - 0.5).reshape(-1, *[1] * len(self.input_shape)), y

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.batches):
            yield self._batch(seed * 7919 + epoch * 31 + number, batch_size)

    def train_batches(self, batch_size: int) -> int:
        return self.batches

    def plain(self, split: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._batch({"train": 1, "validation": 2, "test": 3}[split], 64)
