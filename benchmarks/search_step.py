"""One search step over one plain FP32 step: same model, same memory layout, interleaved in one run, median.

python benchmarks/search_step.py --model resnet8 --batch 64 --threads 2 --out benchmarks/results/search_step.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from ddq_search.cost import CostTables
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.policy import uniform
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from hardware_models.model import cost_model
from search_spaces.models import build_model


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results = [_compare(arguments, layout) for layout in ("contiguous", "channels_last")]
    document = {
        "command": " ".join(["benchmarks/search_step.py", *map(str, vars(arguments).values())]),
        "results": results,
    }
    for result in results:
        print(json.dumps(result))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--share", type=float, default=0.25, help="share of the batch for step and gate gradients")
    parser.add_argument("--device", default="cortex-a53-rpi3-lowbit-neon")
    parser.add_argument("--out")
    return parser.parse_args()


def _compare(arguments: argparse.Namespace, layout: str) -> dict[str, object]:
    torch.manual_seed(0)
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = build_model(arguments.model, 3, 10, 32).train()
    x = torch.randn(arguments.batch, 3, 32, 32)
    y = torch.randint(0, 10, (arguments.batch,))
    graph = trace(model, x[:2])
    device = cost_model(arguments.device)
    space = build_space(graph, device)
    tables = CostTables(space, device.factors(graph, space))
    reference = tables.price(uniform(space, 8, 8))
    limits = {cost: 0.8 * value for cost, value in reference.items() if cost != "peak_ram_bytes"}
    net = Supernet(model, graph, space, sets=4, gradient_share=arguments.share)
    net.calibrate([x])
    net.train()
    lagrangian = AugmentedLagrangian([limits] * 4)
    x = x.contiguous(memory_format=memory)
    plain = copy.deepcopy(model).to(memory_format=memory)
    net.model.to(memory_format=memory)
    generator = torch.Generator().manual_seed(0)
    plain_step = _stepper(plain, lambda: F.cross_entropy(plain(x), y))

    def search_loss() -> torch.Tensor:
        probabilities = net.sample(1, torch.rand(len(space.variables), generator=generator))
        expected = tables.expected(probabilities)
        loss = F.cross_entropy(net(x), y) + lagrangian.term(1, expected)
        lagrangian.update(1, expected)
        return loss

    search_step = _stepper(net, search_loss)
    times: dict[str, list[float]] = {"plain": [], "search": []}
    for _ in range(arguments.repeats + 5):
        for name, step in (("plain", plain_step), ("search", search_step)):
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    net.gates.own[1].grad = None
    search_loss().backward()
    gradient = net.gates.own[1].grad
    assert gradient is not None
    reached = int((gradient[net.gates.exists] != 0).sum())
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    return {
        "model": arguments.model, "layout": layout, "batch": arguments.batch, "threads": arguments.threads,
        "plain_ms": round(1e3 * medians["plain"], 2), "search_ms": round(1e3 * medians["search"], 2),
        "ratio": round(medians["search"] / medians["plain"], 3),
        "gates": int(net.gates.exists.sum()), "gates_with_gradient": reached, "torch": torch.__version__,
    }  # fmt: skip


def _stepper(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
