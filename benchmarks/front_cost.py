"""What a whole front costs beside one uniform LSQ training, and what its points lose against being trained alone.

python benchmarks/front_cost.py --out benchmarks/results/front_cost.json

The front: joint training, fine-tuning, re-estimated statistics and evaluation of every searched policy, and of those
that fill a front of too few points, as in a search. The uniform training: one policy, as many epochs as told
(`joint + finetune` unless told), evaluated. Both start from the same float model, with the same threads, which
`training.workers` may divide among points. Policies of the front are then trained alone for as long as the uniform one;
what is known is written after every few. The ratio is one of seconds on the wall, so nothing else should run before the
points are trained alone; seconds of all processors together are told beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ddq_search.cli import assembly
from ddq_search.cli.settings import read_config
from ddq_search.cost import LATENCY
from ddq_search.finetune_shares import finetune_all
from ddq_search.joint import fill_front, policies_of, train_jointly
from ddq_search.judgement import judge_points
from ddq_search.point_workers import train_all
from ddq_search.policy import Policy, uniform
from ddq_search.problem import Problem
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages, begin
from ddq_search.task import DataSource
from ddq_search.training import Silent


class Stopwatch:
    """Seconds of parts of the work, on the wall and of all processors, kept in a file for a process that goes on.

    Args:
        path: of the file, JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Measures a part; of one that was interrupted within, only what came after."""
        began = _seconds()
        yield
        spent = {clock: round(value - began[clock], 1) for clock, value in _seconds().items()}
        self.seconds.setdefault(part, spent)
        self._path.write_text(json.dumps(self.seconds))


def _seconds() -> dict[str, float]:
    """Returns the time on the wall, and that of the processors in this process and in those that ended."""
    times = os.times()
    return {"wall": time.monotonic(), "processors": sum(times[:4])}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    config = read_config(Path(arguments.config) if arguments.config else None, {}, None, arguments.set)
    problem = assembly.assemble(config)
    training = config.training
    epochs = arguments.uniform_epochs or training.joint_epochs + training.finetune_epochs
    facts = {
        "command": " ".join(["benchmarks/front_cost.py", *sys.argv[1:]]), "threads": arguments.threads,
        "seed": config.seed, "model": config.model.name, "data": _told(problem.source), "epochs_uniform": epochs,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for figures in _measure(problem, Path(arguments.keep or folder), epochs, arguments.alone):
            text = json.dumps({**facts, **figures}, indent=1)
            if arguments.out:
                Path(arguments.out).write_text(text + "\n")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the configuration")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--uniform-epochs", type=int, help="of the uniform training, and of the points trained alone")
    parser.add_argument("--alone", type=int, default=8, help="how many points of the front are trained alone")
    parser.add_argument("--keep", help="folder for checkpoints, to go on with after an interruption")
    parser.add_argument("--out")
    return parser.parse_args()


def _measure(problem: Problem, folder: Path, epochs: int, alone: int) -> Iterator[dict[str, object]]:
    """Yields what is known when the front is done, and again after each of its points that is trained alone."""
    stages = _stages(problem, folder / "search")
    teacher = stages.train_float()
    bits, watch = uniform(problem.space, 4, 8), Stopwatch(folder / "seconds.json")
    with watch.on("uniform"):
        stages.train_policy(Policy("uniform", bits, "uniform"), teacher, epochs)
    with watch.on("joint"):
        searched = train_jointly(stages, teacher)
    with watch.on("finetune"):
        policies = [policy for policy in policies_of(stages, searched) if policy.origin == "search"]
        candidates = finetune_all(stages, policies, searched.net, teacher)
        candidates += fill_front(stages, candidates, searched, teacher)
    tuned = Counter(row["point"] for row in stages.record.history() if row["phase"] == "finetune")
    judged = judge_points(problem, candidates)
    points = [point for point in judged if point.on_front and point.within_budgets]
    names = {point.policy.name for point in points}
    latency = problem.pricing.reference[LATENCY]
    rows = {
        point.policy.name: {
            "latency": round(point.price[LATENCY] / latency, 4), "epochs": tuned[point.policy.name],
            "on_front": point.policy.name in names, "val_loss": round(point.validation.loss, 4),
            "val_score": point.validation.score,
        }
        for point in judged
    }  # fmt: skip
    uniform_s, joint_s, finetune_s = (watch.seconds[part] for part in ("uniform", "joint", "finetune"))
    ratios = {clock: round((joint_s[clock] + finetune_s[clock]) / uniform_s[clock], 2) for clock in uniform_s}
    figures = {
        "points_on_front": len(points), "ratio": ratios["wall"], "ratio_processors": ratios["processors"],
        "seconds": watch.seconds, "policies": rows,
    }  # fmt: skip
    yield figures
    differences = []
    chosen, together = points[:: max(1, len(points) // max(1, alone))][:alone], stages.settings.workers
    for some in (chosen[first : first + together] for first in range(0, len(chosen), together)):
        tasks = [(replace(point.policy, name=f"alone-{point.policy.name}"), epochs) for point in some]
        for point, trained in zip(some, train_all(stages, tasks, teacher), strict=True):
            rows[point.policy.name]["val_score_alone"] = trained.validation.score
            differences.append(point.validation.score - trained.validation.score)
        yield figures | {
            "mean_difference": round(statistics.mean(differences), 3), "worst_difference": round(min(differences), 3)
        }  # fmt: skip


def _told(source: DataSource) -> str:
    counts = [sum(len(x) for x, _ in source.plain(split, 1024)) for split in ("train", "validation")]
    return f"{source.name}, {counts[0]:,} training and {counts[1]:,} validation images"


def _stages(problem: Problem, folder: Path) -> Stages:
    record = RunDirectory(folder)
    begin(problem, record, Silent())
    return Stages(problem, record, Silent())


if __name__ == "__main__":
    main()
