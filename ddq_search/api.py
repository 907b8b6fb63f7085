"""Three calls for a user's own training loop, and the whole search in one.

Wrap the model, add the cost to the loss, read the policy::

    net = wrap(model, example, device, budgets={"latency": "80%"})
    for x, y in loader:
        loss = criterion(net(x), y) + net.cost()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    policy = net.policy()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddq_search.config import BudgetConfig, RunConfig, SpaceConfig
from ddq_search.cost import CostModel
from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing
from ddq_search.front import settled
from ddq_search.judgement import Front
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.policy import Policy
from ddq_search.problem import pose, price_model
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.supernet import Supernet
from ddq_search.task import DataSource, Task
from ddq_search.training import Progress


class Budgeted(nn.Module):
    """A searchable model that knows its price; made by `wrap`.

    In training mode each forward pass samples a precision for every tensor; in evaluation mode the most probable
    policy within the budgets computes.
    """

    def __init__(self, net: Supernet, pricing: Pricing, limits: Mapping[str, float], seed: int = 0) -> None:
        super().__init__()
        self.net = net
        self.pricing = pricing
        self.limits = dict(limits)
        self._lagrangian = AugmentedLagrangian([self.limits])
        self._generator = torch.Generator().manual_seed(seed)
        self._probabilities: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the model's output ``[N, ...]`` at sampled (training) or chosen (evaluation) precisions."""
        if self.training:
            self.net.gates.project()
            uniform = torch.rand(len(self.net.space.variables), generator=self._generator)
            self._probabilities = self.net.sample(0, uniform)
        else:
            self.net.set_policy(self.policy().bits)
        output: Tensor = self.net(x)
        return output

    def cost(self) -> Tensor:
        """Returns the penalty of the last training forward pass: add it to the loss once per step.

        Zero gradient while every expected cost is within its budget; multipliers grow while one is not.

        Raises:
            BudgetError: called before a forward pass in training mode.
        """
        if self._probabilities is None:
            raise BudgetError("cost() belongs after a forward pass in training mode")
        expected = self.pricing.tables.expected(self._probabilities)
        term = self._lagrangian.term(0, expected)
        self._lagrangian.update(0, expected)
        return term.float()

    def expected(self) -> dict[str, float]:
        """Returns the expected cost by name under the present gates."""
        with torch.no_grad():
            probabilities = self.net.gates.probabilities(self.net.gates.cumulative(0))
            return {cost: value.item() for cost, value in self.pricing.tables.expected(probabilities).items()}

    def policy(self, name: str = "searched") -> Policy:
        """Returns the policy that the gates settle on within every budget (`front.settled`), priced."""
        bits = settled(self.pricing, self.net.gates.scores(0).cpu().numpy(), self.limits, [])
        assert bits is not None, "feasibility was checked when the model was wrapped"
        return Policy(name, bits, "search", {"device": self.pricing.device.name, **self.pricing.price(bits)})


def wrap(
    model: nn.Module,
    example: Tensor,
    device: CostModel,
    *,
    budgets: Mapping[str, str | float] | None = None,
    pins: Mapping[str, int | list[int]] | None = None,
    calibration: Iterable[Tensor] | None = None,
    seed: int = 0,
) -> Budgeted:
    """Returns a searchable copy of a model, priced on a device.

    Args:
        model: a float model, best trained already.
        example: one input batch ``[N, ...]``.
        device: a cost model, such as ``hardware_models.model.cost_model("cortex-m7-stm32h743-cmsis-nn")``.
        budgets: ``latency``, ``flash``, ``peak_ram``: ``"80%"`` of uniform 8 bit, or ms and KiB.
        pins: name pattern → bitwidth or bitwidths.
        calibration: input batches from which the quantizers' ranges start; ``example`` when None.
        seed: of the sampled precisions.

    Raises:
        DDQError: the model cannot be traced or priced, or no policy meets the budgets.
    """
    wished = BudgetConfig.model_validate(dict(budgets or {}))
    graph, space, pricing, limits = price_model(model, example, device, SpaceConfig(pins=dict(pins or {})), wished)
    net = Supernet(model, graph, space)
    net.calibrate([example] if calibration is None else calibration)
    return Budgeted(net, pricing, limits, seed)


def find(
    model: nn.Module,
    source: DataSource,
    device: CostModel,
    config: RunConfig,
    *,
    task: Task | None = None,
    progress: Progress | None = None,
) -> Front:
    """Runs (or resumes) a whole search of a model in ``config.out`` and returns its front."""
    problem = pose(model, source, device, config, task)
    path = Path(config.out)
    path.mkdir(parents=True, exist_ok=True)
    return search(problem, RunDirectory(path), progress)
