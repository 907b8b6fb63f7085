"""One search step over one plain FP32 step: same model, same memory layout, interleaved in one run, median.

python benchmarks/search_step.py --model resnet20 --threads 2 --repeats 25
python benchmarks/search_step.py --model resnet20 --set training.distillation=0        # without the teacher's forward
python benchmarks/search_step.py --model resnet20 --weights 2 3 4 5 6 7 8 32 --fewer 2 8   # against fewer candidates
python benchmarks/search_step.py --model resnet20 --compiled                           # both through torch.compile
python benchmarks/search_step.py --model resnet20 --processor cuda

The search step is that of `ddq-search search` with its defaults: batch on the processor, teacher, forward, backward,
gates, clipping, every optimizer. The plain step is forward, backward and SGD of the bare model.
`ratio` is within one layout; `ratio_to_contiguous` leaves the search its layout and takes the plain contiguous step.
`memory_ratio` compares what a step needs beyond what lies there before it, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ddq_search import front as fronts
from ddq_search.cli import assembly
from ddq_search.cli.settings import read_config
from ddq_search.joint import joint_phase
from ddq_search.problem import Problem
from ddq_search.quantizers import fused
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.task import Batch
from ddq_search.training import Silent, Steps

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Plain:
    """Training of the bare model."""

    def __init__(self, arguments: argparse.Namespace, layout: str, problem: Problem) -> None:
        self.x, self.y = _batch(arguments, problem, layout)
        model = copy.deepcopy(problem.model).to(arguments.processor, memory_format=LAYOUTS[layout]).train()
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self._forward = torch.compile(lambda t: model(t), dynamic=False) if arguments.compiled else model

    def step(self) -> None:
        """One step."""
        self._optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self._forward(self.x), self.y).backward()
        self._optimizer.step()


class Search:
    """The joint phase of a search."""

    def __init__(self, arguments: argparse.Namespace, layout: str, problem: Problem) -> None:
        self.x, self.y = _batch(arguments, problem, layout)
        stages = Stages(problem, RunDirectory(Path("not written")), Silent())
        self._teacher = problem.placed_supernet()
        self._teacher.set_float()
        aims = fronts.aims(problem.pricing, problem.budgets, arguments.sets, 0)
        self.net = stages.calibrated(self._teacher, sets=len(aims))
        self._phase = joint_phase(stages, self.net, self._teacher, aims)
        per_epoch = problem.source.train_batches(arguments.batch)
        self._steps, self._number = Steps(self._phase, stages.compute, per_epoch), per_epoch
        self.net.train()

    def step(self) -> None:
        """One step."""
        self._steps.batch(self.x, self.y, self._number)
        self._number += 1

    def reached(self) -> int:
        """Gates to which the last step's loss gave a gradient."""
        assert self._phase.batch_leaves is not None
        (leaf,) = self._phase.batch_leaves()
        assert leaf.grad is not None
        return int((leaf.grad != 0).sum())


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--sets", type=int, default=20, help="gate sets: points of the front searched at once")
    parser.add_argument("--device", default="cortex-a53-rpi3-lowbit-neon")
    parser.add_argument("--weights", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--activations", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--fewer", type=int, nargs="+", help="candidates of a second search in the same run")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the configuration")
    parser.add_argument("--memory-of", choices=["plain", "search", "fewer"], help=argparse.SUPPRESS)
    parser.add_argument("--out")
    return parser.parse_args()


def _problem(arguments: argparse.Namespace, layout: str, weights: list[int], activations: list[int]) -> Problem:
    settings = [
        f"space.weight_bits={weights}", f"space.activation_bits={activations}",
        f"training.batch_size={arguments.batch}", f"training.threads={arguments.threads}",
        f'training.memory_layout="{layout}"',
        f'training.device="{arguments.processor}"', f"training.compile={str(arguments.compiled).lower()}",
        *arguments.set,
    ]  # fmt: skip
    flags = {
        "model.name": arguments.model, "data.name": "synthetic:3x32x32x10", "device.profile": arguments.device,
        "budgets.latency": "80%", "budgets.flash": "80%",
    }  # fmt: skip
    torch.manual_seed(0)
    problem = assembly.assemble(read_config(None, flags, None, settings))
    _estimate_norms(problem.model.train(), torch.randn(16, 3, 32, 32))
    return problem


def _side(arguments: argparse.Namespace, layout: str, name: str) -> Plain | Search:
    few = arguments.fewer if name == "fewer" else None
    problem = _problem(arguments, layout, few or arguments.weights, few or arguments.activations)
    return (Plain if name == "plain" else Search)(arguments, layout, problem)


def _compare(arguments: argparse.Namespace, layout: str) -> dict[str, object]:
    sides = {
        name: _side(arguments, layout, name) for name in ("plain", "search", *(["fewer"] if arguments.fewer else []))
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats + 5):
        for name, side in sides.items():
            began = time.perf_counter()
            side.step()
            if arguments.processor != "cpu":
                torch.accelerator.synchronize()
            times[name].append(time.perf_counter() - began)
    search = sides["search"]
    assert isinstance(search, Search)
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    needs = {name: _memory(arguments, layout, name) for name in times}
    result = {
        "model": arguments.model, "layout": layout, "batch": arguments.batch, "threads": arguments.threads,
        "processor": arguments.processor, "weights": arguments.weights, "activations": arguments.activations,
        "compiled": arguments.compiled, "set": arguments.set,
        "plain_ms": round(1e3 * medians["plain"], 2), "search_ms": round(1e3 * medians["search"], 2),
        "ratio": round(medians["search"] / medians["plain"], 3),
        "memory_ratio": round(needs["search"] / needs["plain"], 3),
        "sets": arguments.sets, "gates_per_set": int(search.net.gates.exists.sum()),
        "gates_with_gradient": search.reached(), "quantizers": fused.status(), "torch": torch.__version__,
    }  # fmt: skip
    if arguments.fewer:
        result |= {
            "fewer": arguments.fewer, "fewer_ms": round(1e3 * medians["fewer"], 2),
            "ratio_to_fewer": round(medians["search"] / medians["fewer"], 3),
        }  # fmt: skip
    return result


def _batch(arguments: argparse.Namespace, problem: Problem, layout: str) -> Batch:
    x, y = next(problem.source.train(seed=0, epoch=0, batch_size=arguments.batch))
    return x.contiguous(memory_format=LAYOUTS[layout]).to(arguments.processor), y.to(arguments.processor)


def _memory(arguments: argparse.Namespace, layout: str, name: str) -> int:
    options = [*sys.argv[1:], "--memory-of", name, "--layouts", layout]
    found = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def _peak_kib(arguments: argparse.Namespace) -> int:
    """What three steps need at most beyond what lies there before them, KiB (resident memory on Linux, or CUDA's)."""
    side = _side(arguments, arguments.layouts[0], arguments.memory_of)
    on_cpu = arguments.processor == "cpu"
    if on_cpu:
        ctypes.CDLL(None).malloc_trim(0)  # what preparations freed is not there before the step
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    else:
        torch.cuda.reset_peak_memory_stats()
    before = _resident_kib("VmRSS") if on_cpu else torch.cuda.memory_allocated() // 1024
    for _ in range(3):
        side.step()
    return (_resident_kib("VmHWM") if on_cpu else torch.cuda.max_memory_allocated() // 1024) - before


def _resident_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


@torch.no_grad()
def _estimate_norms(model: nn.Module, x: torch.Tensor) -> None:
    """Lets an untrained model's normalisations fit its activations, as those of a trained one do."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(x)
    for norm in norms:
        norm.momentum = 0.1


if __name__ == "__main__":
    main()
