"""Step time of data parallel training on one machine: one process with W threads against W processes with one each.

    python benchmarks/data_parallel.py [--processes 2] [--repeats 5] [--steps 20] [--batch-size 64]

ResNet-8 on random 32x32 images; float and joint phases of a search, as `ddq_search.stages` runs them. Both
arrangements take turns; each figure is the median over repeats of a run's median step. Images are not decoded or
augmented here: in a search, every process prepares whole batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ddq_search import distributed
from ddq_search.config import load_config
from ddq_search.joint import train_jointly
from ddq_search.problem import pose
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.training import Silent
from hardware_models.model import cost_model
from search_spaces.models import build_model

SHAPE, CLASSES = (3, 32, 32), 10


class OneBatch:
    """The same random batch again and again."""

    name = fingerprint = "random"
    input_shape, input_grid = SHAPE, None

    def __init__(self, steps, batch_size):
        self.steps = steps
        generator = torch.Generator().manual_seed(0)
        self.batch = (
            torch.randn(batch_size, *SHAPE, generator=generator),
            torch.randint(0, CLASSES, (batch_size,), generator=generator),
        )

    def train(self, *, seed, epoch, batch_size):
        yield from (self.batch for _ in range(self.steps))

    def train_batches(self, batch_size):
        return self.steps

    def plain(self, split, batch_size):
        yield self.batch


class Clock(Silent):
    """Seconds between the steps of every phase, its first three left out."""

    def __init__(self):
        self.moments = {}

    def begin(self, phase, total, done):
        self.times = self.moments.setdefault(phase, [])

    def step(self, facts):
        self.times.append(time.perf_counter())

    def medians(self):
        return {
            phase: statistics.median(after - before for before, after in itertools.pairwise(times[3:]))
            for phase, times in self.moments.items()
        }


def work(options):
    with distributed.processes(), tempfile.TemporaryDirectory() as folder:
        settings = {"training.float_epochs": 1, "training.joint_epochs": 1, "training.batch_size": options.batch_size}
        torch.manual_seed(0)
        model = build_model("resnet8", SHAPE[0], CLASSES, SHAPE[1:])
        source = OneBatch(options.steps, options.batch_size)
        problem = pose(model, source, cost_model("cortex-m7-stm32h743-cmsis-nn"), load_config(None, settings))
        clock = Clock()
        stages = Stages(problem, RunDirectory(Path(folder)), clock)
        train_jointly(stages, stages.train_float())
        if distributed.rank() == 0:
            print(json.dumps(clock.medians()))


def measured(options, processes, threads):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--worker"]
    command += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("processes", 2), ("repeats", 5), ("steps", 20), ("batch-size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    threads, ranks = [], []
    for _ in range(options.repeats):
        threads.append(measured(options, 1, options.processes))
        ranks.append(measured(options, options.processes, 1))
    for phase in threads[0]:
        one, many = (statistics.median(run[phase] for run in runs) for runs in (threads, ranks))
        ratios = sorted(b[phase] / a[phase] for a, b in zip(threads, ranks, strict=True))
        print(
            f"{phase}: {1e3 * one:.1f} ms with {options.processes} threads, {1e3 * many:.1f} ms with "
            f"{options.processes} processes; ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
