"""One search step over one plain FP32 step: same model, same memory layout, interleaved in one run, median.

python benchmarks/search_step.py --model resnet20 --threads 2 --repeats 25
python benchmarks/search_step.py --model resnet20 --weights 2 8 --activations 2 8      # fewer candidates
python benchmarks/search_step.py --model resnet20 --compiled                           # both through torch.compile

`ratio` is within one layout; `ratio_to_contiguous` leaves the search its layout and takes the plain contiguous step.
`memory_ratio` compares what a step needs beyond what lies there before it, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ddq_search.cost import CostTables
from ddq_search.gate_training import GateTraining
from ddq_search.graph import ModelGraph
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.policy import uniform
from ddq_search.quantizers import fused
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from hardware_models.devices import find_device
from search_spaces.models import build_model

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Bench:
    """A model, its supernet, and one step of each."""

    def __init__(self, arguments: argparse.Namespace, layout: str) -> None:
        torch.manual_seed(0)
        model = build_model(arguments.model, 3, 10, 32).train()
        x = torch.randn(arguments.batch, 3, 32, 32)
        _estimate_norms(model, x)
        self.y = torch.randint(0, 10, (arguments.batch,))
        graph: ModelGraph = trace(model, x[:2])
        device = find_device(arguments.device)
        space = build_space(graph, device, weight_bits=arguments.weights, activation_bits=arguments.activations)
        tables = CostTables(space, device.factors(graph, space))
        reference = tables.price(uniform(space, max(arguments.weights), max(arguments.activations)))
        limits = {cost: 0.8 * value for cost, value in reference.items() if cost != "peak_ram_bytes"}
        self.net = Supernet(model, graph, space, sets=arguments.sets, gradient_share=arguments.share)
        self.net.calibrate([x[:4]])
        self.net.train()
        self.gates = GateTraining(self.net, tables, AugmentedLagrangian([limits] * arguments.sets))
        self.x = x.contiguous(memory_format=LAYOUTS[layout])
        self.plain = copy.deepcopy(model).to(memory_format=LAYOUTS[layout])
        self.net.model.to(memory_format=LAYOUTS[layout])
        self.generator = torch.Generator().manual_seed(0)
        self.optimizers = {name: _optimizer(module) for name, module in (("plain", self.plain), ("search", self.net))}
        self.forward: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"plain": self.plain, "search": self.net}
        if arguments.compiled:
            plain, net = self.plain, self.net
            self.forward = {
                "plain": torch.compile(lambda t: plain(t), dynamic=False),
                "search": torch.compile(lambda t: net(t), dynamic=False),
            }

    def step(self, name: str) -> None:
        """One step of ``plain`` or ``search``."""
        self.optimizers[name].zero_grad(set_to_none=True)
        if name == "plain":
            F.cross_entropy(self.forward[name](self.x), self.y).backward()
            self.optimizers[name].step()
            return
        self.gates.sample(1, torch.rand(len(self.net.space.variables), generator=self.generator))
        F.cross_entropy(self.forward[name](self.x), self.y).backward()
        self.gates.collect()
        self.gates.backward()
        self.optimizers[name].step()
        self.gates.update()


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(_peak_kib(arguments))
        return
    results = [_compare(arguments, layout) for layout in arguments.layouts]
    contiguous = next((r["plain_ms"] for r in results if r["layout"] == "contiguous"), None)
    for result in results:
        if isinstance(contiguous, float):
            result["ratio_to_contiguous"] = round(result["search_ms"] / contiguous, 3)
        print(json.dumps(result))
    document = {"command": " ".join(["benchmarks/search_step.py", *sys.argv[1:]]), "results": results}
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
    parser.add_argument("--weights", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--activations", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--memory-of", choices=["plain", "search"], help=argparse.SUPPRESS)
    parser.add_argument("--out")
    return parser.parse_args()


def _compare(arguments: argparse.Namespace, layout: str) -> dict[str, object]:
    bench = Bench(arguments, layout)
    times: dict[str, list[float]] = {"plain": [], "search": []}
    for _ in range(arguments.repeats + 5):
        for name, taken in times.items():
            began = time.perf_counter()
            bench.step(name)
            taken.append(time.perf_counter() - began)
    exists = bench.net.gates.exists
    reached = min(int((own.grad[exists] != 0).sum()) for own in bench.net.gates.own if own.grad is not None)
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    needs = {name: _memory(arguments, layout, name) for name in times}
    return {
        "model": arguments.model, "layout": layout, "batch": arguments.batch, "threads": arguments.threads,
        "weights": arguments.weights, "activations": arguments.activations, "compiled": arguments.compiled,
        "plain_ms": round(1e3 * medians["plain"], 2), "search_ms": round(1e3 * medians["search"], 2),
        "ratio": round(medians["search"] / medians["plain"], 3),
        "memory_ratio": round(needs["search"] / needs["plain"], 3),
        "sets": arguments.sets, "gates_per_set": int(exists.sum()), "gates_with_gradient": reached,
        "quantizers": fused.status(), "torch": torch.__version__,
    }  # fmt: skip


def _memory(arguments: argparse.Namespace, layout: str, name: str) -> int:
    values = vars(arguments) | {"layouts": [layout]}
    options = ["--memory-of", name, "--layouts", layout]
    for key in ("model", "batch", "threads", "share", "sets", "device"):
        options += [f"--{key}", str(values[key])]
    for key in ("weights", "activations"):
        options += [f"--{key}", *map(str, values[key])]
    found = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def _peak_kib(arguments: argparse.Namespace) -> int:
    """What three steps need at most beyond what lies there before them, KiB of resident memory (Linux)."""
    bench = Bench(arguments, arguments.layouts[0])
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    before = _resident_kib("VmRSS")
    for _ in range(3):
        bench.step(arguments.memory_of)
    return _resident_kib("VmHWM") - before


def _resident_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


@torch.no_grad()
def _estimate_norms(model: nn.Module, x: torch.Tensor) -> None:
    """Lets an untrained model's normalisations fit its activations, as those of a trained one do."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(x[:16])
    for norm in norms:
        norm.momentum = 0.1


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)


if __name__ == "__main__":
    main()
