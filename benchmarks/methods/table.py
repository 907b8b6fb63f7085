"""The methods side by side: one cell per (row, seed), each resumable; prints means, paired differences, intervals.

python benchmarks/methods/table.py --data PATH/TO/cifar10-jpeg.tar.xz --keep runs/methods --seeds 0 1 2

A row is a method under budgets. All rows of a seed share data, float model and float baseline; each gets ``joint +
finetune`` epochs. Cells that are finished are read, not run, and refused where they are of another configuration;
``--rows`` chooses. Without ``--data`` the embedded digits are used, which only shows that everything runs.

The rows ``lsq`` train LSQ as published, one step per tensor; the rows ``uniform`` the quantizers that DDQ searches with
(steps per channel, set by their error), at fixed bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddq_search.cli import assembly
from ddq_search.cli.settings import read_config
from ddq_search.config import RunConfig
from ddq_search.graph import Operation
from ddq_search.policy import Policy
from ddq_search.problem import Problem, measure_as_is
from ddq_search.record import RunDirectory
from ddq_search.search import front_of
from ddq_search.stages import Stages, begin
from ddq_search.supernet import Supernet
from ddq_search.task import Measure
from ddq_search.training import Silent
from reports.baselines import interval

MIXED = ["space.weight_bits=[2,3,4,5,6,7,8]", "space.activation_bits=[2,3,4,5,6,7,8]"]
WEIGHTS_ONLY = ["space.weight_bits=[2,3,4,5,6,7,8]", "space.activation_bits=[32]"]
SMALL = ["budgets.flash=26.75%"]
"""2.14 bits per weight."""
SMALL_BOTH = [*SMALL, "budgets.peak_ram=50%"]
FOUR = ["budgets.flash=50%", "budgets.latency=25%"]
"""At most the weights and bit operations of 4 bits everywhere; the input, at 8 bits, makes LSQ 4/4 dearer than that."""


def _fixed(weights: int, activations: int) -> list[str]:
    return ["search.method=lsq-uniform", f"space.weight_bits=[{weights}]", f"space.activation_bits=[{activations}]"]


SAME_QUANTIZERS = ['search.weight_quantizers=["uniform"]', 'search.activation_quantizers=["uniform"]']
AS_PUBLISHED = [
    'search.weight_quantizers=["learned"]', "search.gates=thresholded", "search.constraint=squared-gap",
    "search.penalty=0.1", "quantizers.gate_gradient=through_z", "quantizers.nearest=raw", "quantizers.window=levels",
    "quantizers.correction=0.1", "quantizers.mirrored=false", "quantizers.scale_gradient=levels",
]  # fmt: skip
"""DDQ's free levels, thresholded gates with gradients through Z_U, gradient correction and two-sided penalty."""


ROWS: dict[str, list[str]] = {
    "lsq 2/32": _fixed(2, 32),
    "lsq 4/4": _fixed(4, 4),
    "lsq 8/8": _fixed(8, 8),
    "uniform 2/32": [*_fixed(2, 32), *SAME_QUANTIZERS],
    "uniform 4/4": [*_fixed(4, 4), *SAME_QUANTIZERS],
    "uniform 8/8": [*_fixed(8, 8), *SAME_QUANTIZERS],
    "dq-u3 w2.14": [*WEIGHTS_ONLY, *SMALL, "search.method=dq"],
    "ddq w2.14": [*WEIGHTS_ONLY, *SMALL],
    "ddq as published w2.14": [*WEIGHTS_ONLY, *SMALL, *AS_PUBLISHED],
    "edmips w2.14": [*WEIGHTS_ONLY, *SMALL, "search.method=edmips"],
    "dq-u3 w2.14 a4": [*MIXED, *SMALL_BOTH, "search.method=dq"],
    "ddq w2.14 a4": [*MIXED, *SMALL_BOTH],
    "edmips w2.14 a4": [*MIXED, *SMALL_BOTH, "search.method=edmips"],
    "bayesian-bits w2.14 a4": [*MIXED, *SMALL_BOTH, "search.method=bayesian-bits"],
    "fracbits w2.14 a4": [*MIXED, *SMALL_BOTH, "search.method=fracbits"],
    "ilp w2.14 a4": [*MIXED, *SMALL_BOTH, "search.method=ilp"],
    "dqss w2.14 a4": [*MIXED, *SMALL_BOTH, "search.method=dqss"],
    "ddq w4 a4": [*MIXED, *FOUR],
}
PAIRS = [
    ("dq-u3 w2.14", "lsq 2/32"),
    ("dq-u3 w2.14", "uniform 2/32"),
    ("ddq w2.14", "ddq as published w2.14"),
    ("ddq w2.14", "dq-u3 w2.14"),
    ("ddq w2.14", "edmips w2.14"),
    ("ddq w2.14 a4", "dq-u3 w2.14 a4"),
    ("ddq w2.14 a4", "edmips w2.14 a4"),
    ("ddq w2.14 a4", "bayesian-bits w2.14 a4"),
    ("ddq w2.14 a4", "fracbits w2.14 a4"),
    ("ddq w2.14 a4", "ilp w2.14 a4"),
    ("ddq w2.14 a4", "dqss w2.14 a4"),
    ("ddq w4 a4", "lsq 4/4"),
    ("ddq w4 a4", "uniform 4/4"),
    ("ddq w4 a4", "float"),
]


class SharedBaseline(Stages):
    """Stages whose float baseline was trained once for all rows of a seed."""

    baseline: tuple[Supernet, int]

    def train_baseline(self, teacher: Supernet) -> tuple[Supernet, int]:
        """Returns it."""
        return self.baseline


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    keep = Path(arguments.keep)
    (keep / "cells").mkdir(parents=True, exist_ok=True)
    cells = []
    for seed in arguments.seeds:
        for row in arguments.rows:
            path = keep / "cells" / f"{row.replace(' ', '_').replace('/', '-')}-{seed}.json"
            asked = _config(arguments, ROWS[row], seed).fingerprint()
            if not path.exists():
                cell = {"fingerprint": asked, **_cell(arguments, keep, row, seed)}
                path.write_text(json.dumps(cell) + "\n")
                print(f"{row}, seed {seed}: test {cell['test']:.2f} in {cell['seconds']} s", flush=True)
            cells.append(json.loads(path.read_text()))
            if cells[-1]["fingerprint"] != asked:
                sys.exit(f"{path} is a cell of another configuration; name another folder with --keep, or remove it")
    document = {"command": " ".join(["benchmarks/methods/table.py", *sys.argv[1:]]), **summary(cells), "cells": cells}
    for part in ("rows", "differences"):
        for entry in document[part]:
            print(entry)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--keep", default="runs/methods", help="folder of cells and checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the configuration, for every cell")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    return parser.parse_args()


def _config(arguments: argparse.Namespace, row: list[str], seed: int) -> RunConfig:
    settings = [
        f"model.name={arguments.model}", f"data.name={arguments.data}", "device.profile=exact-widths", f"seed={seed}",
        "search.points=1", "search.relaxed_points=0", "search.extra_points=0", "search.uniform=[]",
    ]  # fmt: skip
    flags = dict(setting.split("=", 1) for setting in settings[:4])
    flags = {**flags, "seed": seed}
    return read_config(None, flags, None, [*settings[4:], *arguments.set, *row])


def _cell(arguments: argparse.Namespace, keep: Path, row: str, seed: int) -> dict[str, Any]:
    problem = assembly.assemble(_config(arguments, ROWS[row], seed))
    teacher, baseline, validated, tested = _float(arguments, keep, seed)
    folder = keep / f"run-{row.replace(' ', '_').replace('/', '-')}-{seed}"
    stages = _stages(SharedBaseline, problem, folder)
    stages.baseline = baseline
    own = problem.placed_supernet()
    own.model.load_state_dict(teacher.model.state_dict())
    own.set_float()
    began = time.perf_counter()
    front = front_of(stages, own)
    seconds = time.perf_counter() - began
    point = next(point for point in front.points if point.policy.name == front.best)
    assert point.test is not None
    return {
        "row": row, "seed": seed, "seconds": round(seconds, 1),
        "val": point.validation.score, "val_loss": point.validation.loss, "test": point.test.score,
        "float_val": validated.score, "float_test": tested.score,
        **_mean_bits(problem, point.policy), "policy": dict(point.policy.bits),
    }  # fmt: skip


def _mean_bits(problem: Problem, policy: Policy) -> dict[str, Any]:
    """Bits per weight, and by kind of layer the mean over its layers of the bits of weights and of output."""
    layers = {name: problem.graph.nodes[name]["operation"] for name in problem.space.weights_of}
    weights = {name: policy.bits[problem.space.weights_of[name]] for name in layers}
    outputs = {name: policy.bits[problem.space.activations_of[name]] for name in layers}
    total = sum(layer.weights * weights[name] for name, layer in layers.items())
    by_kind: dict[str, list[str]] = {}
    for name, layer in layers.items():
        by_kind.setdefault(_kind(layer), []).append(name)
    return {
        "weight_bits": round(total / sum(layer.weights for layer in layers.values()), 3),
        "bits_by_kind": {
            kind: {
                "layers": len(names),
                "weights": round(float(np.mean([weights[name] for name in names])), 2),
                "outputs": round(float(np.mean([outputs[name] for name in names])), 2),
            }
            for kind, names in by_kind.items()
        },
    }


def _kind(layer: Operation) -> str:
    if layer.kind != "conv2d":
        return layer.kind
    if layer.attributes["groups"] > 1:
        return "depthwise"
    return "pointwise" if layer.attributes["kernel_size"] == (1, 1) else "convolution"


def _float(
    arguments: argparse.Namespace, keep: Path, seed: int
) -> tuple[Supernet, tuple[Supernet, int], Measure, Measure]:
    """The float model, its baseline and that one's epochs, and the baseline's validation and test figures."""
    problem = assembly.assemble(_config(arguments, ROWS["lsq 8/8"], seed))
    stages = _stages(Stages, problem, keep / f"float-{seed}")
    teacher = stages.train_float()
    net, epochs = stages.train_baseline(teacher)
    figures = [measure_as_is(problem, net, split) for split in ("validation", "test")]
    return teacher, (net, epochs), figures[0], figures[1]


def _stages(kind: type[Stages], problem: Problem, folder: Path) -> Any:
    record = RunDirectory(folder)
    begin(problem, record, Silent())
    return kind(problem, record, Silent())


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns means by row and paired differences with 95 % intervals (Student's t over seeds)."""
    scores: dict[str, dict[int, float]] = {}
    for cell in cells:
        scores.setdefault(cell["row"], {})[cell["seed"]] = cell["test"]
        scores.setdefault("float", {})[cell["seed"]] = cell["float_test"]
    rows = [
        {"row": row, "seeds": len(found), "test_mean": round(float(np.mean(list(found.values()))), 2)}
        for row, found in scores.items()
    ]
    differences = []
    for ours, theirs in PAIRS:
        seeds = sorted(set(scores.get(ours, {})) & set(scores.get(theirs, {})))
        if seeds:
            deltas = np.array([scores[ours][seed] - scores[theirs][seed] for seed in seeds])
            low, high = interval(deltas)
            differences.append({
                "ours": ours, "theirs": theirs, "seeds": len(seeds), "mean": round(float(deltas.mean()), 3),
                "half_width": round((high - low) / 2, 3) if len(seeds) > 1 else None,
            })  # fmt: skip
    return {"rows": rows, "differences": differences}


if __name__ == "__main__":
    main()
