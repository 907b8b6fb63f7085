"""What is known before training: model, data, device, search space, prices and budgets, joined into one problem."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddq_search.compute import Compute, compute_of
from ddq_search.config import BudgetConfig, RunConfig, SpaceConfig
from ddq_search.cost import CostModel, CostTables
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.feasibility import Pricing, require_feasible
from ddq_search.graph import ModelGraph, to_json
from ddq_search.integer.lowering import lower
from ddq_search.methods import quantizers_of
from ddq_search.policy import Policy
from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers.choice_of_families import UNIFORM, Quantizers
from ddq_search.space import Rule, SearchSpace, build_space
from ddq_search.supernet import Supernet
from ddq_search.task import Classification, DataSource, Measure, Split, Task, identity, measure
from ddq_search.trace import trace

EVALUATION_BATCH = 250
STATISTICS_EPOCH = 900_000
"""Epoch key of the batches on which ranges and batch-norm statistics are estimated."""


@dataclass(frozen=True)
class Problem:
    """Everything that is known before training: model, data, device, space, prices and budgets."""

    config: RunConfig
    model: nn.Module
    source: DataSource
    graph: ModelGraph
    space: SearchSpace
    pricing: Pricing
    budgets: Mapping[str, float]
    task: Task

    @property
    def device(self) -> CostModel:
        """The cost model of the target."""
        return self.pricing.device

    @property
    def fingerprint(self) -> str:
        """Identifies configuration, model, initial weights, data, prices and task: what a checkpoint must belong to.

        The task that is taken where none is given adds nothing, so checkpoints from before tasks were told apart fit.
        """
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        for factor in self.pricing.tables.factors:
            digest.update(f"{factor.cost} {factor.operation} {factor.step}".encode())
            digest.update(factor.table.tobytes())
        task = () if self.task == Classification() else (identity(self.task),)
        return self.config.fingerprint(to_json(self.graph), self.source.fingerprint, digest.hexdigest(), *task)

    @property
    def compute(self) -> Compute:
        """Where training computes.

        Raises:
            ConfigError: this machine has no such processor.
        """
        return compute_of(self.config.training)

    def placed_supernet(self, sets: int = 1) -> Supernet:
        """Returns a fresh supernet of the model where training computes."""
        return self.compute.place_net(self.supernet(sets))

    def supernet(self, sets: int = 1) -> Supernet:
        """Returns a fresh supernet of the model in main memory."""
        return Supernet(
            self.model, self.graph, self.space, sets=sets, input_grid=self.source.input_grid,
            output_grid=getattr(self.source, "output_grid", None),
            gradient_share=self.config.search.gradient_share, gate_start=self.config.search.gate_start,
            quantizers=quantizers_of(self.config),
        )  # fmt: skip


def pose(
    model: nn.Module, source: DataSource, device: CostModel, config: RunConfig, task: Task | None = None
) -> Problem:
    """Traces and prices the model and resolves the budgets.

    Raises:
        GraphError, SpaceError, CostError: the model, the candidates or the device do not fit together.
        BudgetError: no policy meets the budgets.
    """
    example = torch.zeros(2, *source.input_shape)
    quantizers = quantizers_of(config)
    graph, space, pricing, budgets = price_model(model, example, device, config.space, config.budgets, quantizers)
    return Problem(config, model, source, graph, space, pricing, budgets, task or Classification())


def price_model(
    model: nn.Module, example: Tensor, device: CostModel, space_config: SpaceConfig, budget_config: BudgetConfig,
    quantizers: Quantizers = UNIFORM,
) -> tuple[ModelGraph, SearchSpace, Pricing, dict[str, float]]:  # fmt: skip
    """Returns a model's graph, search space, pricing and resolved budgets; raises as `pose` does."""
    graph = trace(model, example)
    space = space_of(graph, device, space_config)
    weights = [variable.name for variable in space.variables if variable.role == "weights"]
    space = replace(
        space,
        codebook_weights=frozenset(weights if quantizers.codebook else ()),
        further_points=dict.fromkeys(weights, quantizers.points) if quantizers.points else {},
    )
    pricing = Pricing.build(graph, device, CostTables(space, device.factors(graph, space)))
    budgets = {wish.cost: wish.resolve(pricing.reference) for wish in budget_config.wishes()}
    require_feasible(pricing, budgets)
    return graph, space, pricing, budgets


def space_of(graph: ModelGraph, device: CostModel, config: SpaceConfig) -> SearchSpace:
    """Returns the configured candidates that a device executes; raises as `build_space` does."""
    rules = [Rule(p, tuple(bits) if isinstance(bits, list) else (bits,)) for p, bits in config.pins.items()]
    return build_space(
        graph, device, weight_bits=config.weight_bits, activation_bits=config.activation_bits, rules=rules
    )


def inputs(problem: Problem, count: int) -> Iterator[Tensor]:
    """Yields the same few training batches for every calibration and re-estimation of a problem, where it computes."""
    size = problem.config.training.batch_size
    batches = problem.source.train(seed=problem.config.seed, epoch=STATISTICS_EPOCH, batch_size=size)
    return (x for x, _ in problem.compute.placed(itertools.islice(batches, count)))


@torch.no_grad()
def measure_as_is(problem: Problem, net: Supernet, split: Split) -> Measure:
    """Returns loss and metric of a network in its present mode, in floating point as it was trained."""
    net.eval()
    batches = problem.compute.placed(problem.source.plain(split, EVALUATION_BATCH))
    return measure(problem.task, [(net(x), y) for x, y in batches])


def evaluate_policy(problem: Problem, net: Supernet, policy: Policy, split: Split) -> Measure:
    """Returns loss and metric of a trained policy, computed on integer codes.

    A policy that leaves tensors in float32, which no device of ours runs, is computed as it was trained.
    """
    if FLOAT_BITS in policy.bits.values():
        net.set_policy(policy.bits)
        return measure_as_is(problem, net, split)
    where = problem.compute.integer_device
    evaluator = IntegerEvaluator(lower(net.discretize(policy.bits), problem.device.arithmetic), where)
    batches = problem.source.plain(split, EVALUATION_BATCH)
    return measure(problem.task, ((evaluator.scores(x), y.to(where)) for x, y in batches))
