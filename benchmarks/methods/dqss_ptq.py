"""DQSS after training against every single strategy: weights at 4 bits, activations at 8, no labels, no training.

python benchmarks/methods/dqss_ptq.py --keep runs/dqss                                          # digits, ResNet-8
python benchmarks/methods/dqss_ptq.py --model espcn --data sample-images --keep runs/dqss-sr    # super-resolution

All rows of a seed share the float model and the calibration images. The single strategy that DQSS is compared with is
the best of the validation split; differences are those of the test split.
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
from safetensors.torch import save_file

from ddq_search.cli import assembly
from ddq_search.cli.settings import read_config
from ddq_search.config import RunConfig
from ddq_search.ptq import ptq
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages, begin
from ddq_search.training import Silent

STRATEGIES = ("min-max", "percentile", "mse", "kl", "aciq", "cosine")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows = []
    for seed in arguments.seeds:
        weights = _float_weights(arguments, seed)
        for name, families in [*((strategy, (strategy,)) for strategy in STRATEGIES), ("dqss", STRATEGIES)]:
            rows.append({"row": name, "seed": seed, **_quantized(arguments, seed, weights, families)})
            print(rows[-1], flush=True)
    document = {
        "command": " ".join(["benchmarks/methods/dqss_ptq.py", *sys.argv[1:]]), "summary": summary(rows), "rows": rows,
    }  # fmt: skip
    print(json.dumps(document["summary"], indent=1))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--activation-bits", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", required=True, help="folder of float models and runs")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the configuration")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    return parser.parse_args()


def _config(arguments: argparse.Namespace, seed: int, settings: list[str], weights: Path | None) -> RunConfig:
    flags = {
        "model.name": arguments.model, "data.name": arguments.data, "seed": seed,
        "device.profile": "exact-widths", "model.weights": None if weights is None else str(weights),
    }  # fmt: skip
    return read_config(None, flags, None, [*arguments.set, *settings])


def _float_weights(arguments: argparse.Namespace, seed: int) -> Path:
    path = Path(arguments.keep) / f"float-{seed}.safetensors"
    if not path.exists():
        problem = assembly.assemble(_config(arguments, seed, [], None))
        record = RunDirectory(Path(arguments.keep) / f"float-{seed}")
        begin(problem, record, Silent())
        net = Stages(problem, record, Silent()).train_float()
        save_file({key: value.contiguous() for key, value in net.model.state_dict().items()}, path)
    return path


def _quantized(arguments: argparse.Namespace, seed: int, weights: Path, families: tuple[str, ...]) -> dict[str, Any]:
    names = json.dumps(list(families))
    settings = [
        "search.mode=ptq", "search.method=dqss", f"search.weight_quantizers={names}",
        f"search.activation_quantizers={names}", f"space.weight_bits=[{arguments.weight_bits}]",
        f"space.activation_bits=[{arguments.activation_bits}]", "training.float_epochs=0", "search.points=1",
        "search.relaxed_points=0", "search.extra_points=0", "search.uniform=[]",
    ]  # fmt: skip
    problem = assembly.assemble(_config(arguments, seed, settings, weights))
    name = "dqss" if len(families) > 1 else families[0]
    began = time.perf_counter()
    front = ptq(problem, RunDirectory(Path(arguments.keep) / f"{name}-{seed}"), Silent())
    point = front.point("best")
    assert point.test is not None
    assert front.float_test is not None
    return {
        "val": point.validation.score, "test": point.test.score, "float_test": front.float_test.score,
        "images": problem.config.search.ptq_images, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over seeds, and DQSS less the single strategy that is best in validation, by seed."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    means = {name: round(float(np.mean([r["test"] for r in rows if r["row"] == name])), 3) for name in names}
    differences = {}
    for seed in dict.fromkeys(row["seed"] for row in rows):
        mine = {row["row"]: row for row in rows if row["seed"] == seed}
        best = max((name for name in mine if name != "dqss"), key=lambda name: float(mine[name]["val"]))
        delta = mine["dqss"]["test"] - mine[best]["test"]
        differences[str(seed)] = {"best_single": best, "difference": round(delta, 3)}
    seconds = max(row["seconds"] for row in rows if row["row"] == "dqss")
    return {"test_means": means, "dqss_less_best_single": differences, "dqss_seconds": seconds}


if __name__ == "__main__":
    main()
