"""One search step over one plain FP32 step: same model, same memory layout, interleaved in one run, median.

python benchmarks/search_step.py --model resnet8 --batch 64 --threads 2 --out benchmarks/results/search_step.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ddq_search.cost import CostTables
from ddq_search.gate_training import GateTraining
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
        "command": " ".join(["benchmarks/search_step.py", *sys.argv[1:]]),
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
    parser.add_argument("--sets", type=int, default=20, help="gate sets: points of the front searched at once")
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
    net = Supernet(model, graph, space, sets=arguments.sets, gradient_share=arguments.share)
    net.calibrate([x])
    net.train()
    gates = GateTraining(net, tables, AugmentedLagrangian([limits] * arguments.sets))
    x = x.contiguous(memory_format=memory)
    plain = copy.deepcopy(model).to(memory_format=memory)
    net.model.to(memory_format=memory)
    generator = torch.Generator().manual_seed(0)
    plain_optimizer, search_optimizer = _optimizer(plain), _optimizer(net)

    def plain_step() -> None:
        plain_optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(plain(x), y).backward()
        plain_optimizer.step()

    def search_step() -> None:
        search_optimizer.zero_grad(set_to_none=True)
        gates.sample(1, torch.rand(len(space.variables), generator=generator))
        F.cross_entropy(net(x), y).backward()
        gates.collect()
        gates.backward()
        search_optimizer.step()
        gates.update()

    times: dict[str, list[float]] = {"plain": [], "search": []}
    for _ in range(arguments.repeats + 5):
        for name, step in (("plain", plain_step), ("search", search_step)):
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    exists = net.gates.exists
    reached = min(int((own.grad[exists] != 0).sum()) for own in net.gates.own if own.grad is not None)
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    return {
        "model": arguments.model, "layout": layout, "batch": arguments.batch, "threads": arguments.threads,
        "plain_ms": round(1e3 * medians["plain"], 2), "search_ms": round(1e3 * medians["search"], 2),
        "ratio": round(medians["search"] / medians["plain"], 3),
        "sets": arguments.sets,
        "gates_per_set": int(exists.sum()), "gates_with_gradient": reached, "torch": torch.__version__,
    }  # fmt: skip


def _optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)


if __name__ == "__main__":
    main()
