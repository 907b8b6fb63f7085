"""Policies priced per second, and how long the factors of a model take: medians of five on one thread.

python benchmarks/pricing.py [--device NAME] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models import cost_model
from search_spaces.models import build_model

POLICIES = 20_000


def median_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cortex-a53-rpi3-lowbit-neon")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cost, found = cost_model(arguments.device), []
    torch.set_num_threads(1)
    with torch.device("meta"):
        graphs = {
            "resnet20 32x32": trace(build_model("resnet20", 3, 10, 32), torch.zeros(1, 3, 32, 32)),
            "mobilenet_v2 224x224": trace(torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 224, 224)),
        }
    for name, graph in graphs.items():
        space = build_space(graph, cost)
        factors_s = median_s(lambda g=graph, s=space: cost.factors(g, s))
        tables = CostTables(space, cost.factors(graph, space))
        generator = np.random.default_rng(0)
        choices = np.stack([generator.integers(0, len(v.candidates), POLICIES) for v in space.variables], 1)
        for costs in ((LATENCY, FLASH, PEAK_RAM), tables.costs):
            rate = POLICIES / median_s(lambda c=costs, t=tables, x=choices: t.price_many(x, c))
            print(f"{name} on {cost.name}: {rate:,.0f} policies/s for {', '.join(costs)}")
            found.append({"network": name, "costs": costs, "policies_per_s": round(rate)})
        print(f"{name} on {cost.name}: all factors in {1e3 * factors_s:.1f} ms")
        found.append({"network": name, "factors_ms": round(1e3 * factors_s, 1)})
    document = {"command": " ".join(["benchmarks/pricing.py", *sys.argv[1:]]), "device": cost.name, "results": found}
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
