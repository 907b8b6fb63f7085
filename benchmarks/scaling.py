"""What grows with layers, candidates, images and workers: every figure of docs/scaling.md.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--only layers step …] [--again]

Cells that are in the result file already are left out (``--again`` measures them anew), so it can be stopped and goes
on; each runs in a process of its own and takes at most a few minutes. Times are medians of processor seconds (a busy
machine stretches them less than the clock's), ratios medians of ratios of steps that take turns; only the workers'
trials per minute are by the clock. One thread; networks of `benchmarks/scaling_networks.py`; seed 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import scaling_cells
import torch

LAYERS = (10, 30, 100, 300)
KINDS = ("chain", "residual")
WORKER_ROUNDS = 5
OUT = Path(__file__).parent / "results" / "scaling.json"


def cells() -> Iterator[tuple[str, str, list[str]]]:
    """(name, what measures it, arguments)."""
    for kind in KINDS:
        for layers in LAYERS:
            yield f"layers/{kind}/{layers}", "layers", [kind, str(layers)]
    for name in ("mobilenet_v2", "resnet50"):
        yield f"network/{name}", "network", [name]
    yield "candidates", "candidates", []
    for layers in LAYERS:
        yield f"report/{layers}", "report", [str(layers)]
    yield "images", "images", []
    yield "cache", "cache", []
    for number in range(WORKER_ROUNDS):
        yield f"workers/{number}", "workers", [str(number)]
    for kind in KINDS:
        for layers in LAYERS:
            yield f"step/{kind}/{layers}", "step", [kind, str(layers)]
    for layers in LAYERS:
        for step in ("plain", "search"):
            yield f"memory/{layers}/{step}", "memory", [str(layers), step]
    yield "step-candidates", "step_candidates", []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of cells, or the parts before their first slash")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        print(json.dumps(getattr(scaling_cells, options.cell[0])(*options.cell[1:])))
        return
    document = json.loads(OUT.read_text()) if OUT.exists() else {"cells": {}}
    for name, work, arguments in cells():
        wanted = not options.only or name in options.only or name.partition("/")[0] in options.only
        if not wanted or (name in document["cells"] and not options.again):
            continue
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--cell", work, *arguments], stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        result = json.loads(done.stdout.splitlines()[-1]) | {"commit": commit(), "load_before": os.getloadavg()[0]}
        document["cells"][name] = result
        document |= {
            "command": "OMP_NUM_THREADS=1 python benchmarks/scaling.py", "seed": 0, "processors": os.cpu_count(),
            "machine": platform.machine(), "torch": torch.__version__, "threads": 1, "batch": scaling_cells.BATCH,
            "device": scaling_cells.DEVICE,
        }  # fmt: skip
        OUT.write_text(json.dumps(document, indent=1) + "\n")
        print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(result)}", flush=True)


def commit() -> str:
    """The commit of the measured code, marked when the core has changes on top."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "../ddq_search"], check=False).returncode
    return head.stdout.strip() + ("+changes" if dirty else "")


if __name__ == "__main__":
    main()
