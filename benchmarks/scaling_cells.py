"""The cells of `benchmarks/scaling.py`: what each measures, as a function of strings that returns plain figures."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import scaling_networks as n
import torch

from ddq_search.feasibility import Pricing

CANDIDATES = {2: (2, 8), 4: (2, 4, 6, 8), 7: (2, 3, 4, 5, 6, 7, 8), 8: (2, 3, 4, 5, 6, 7, 8, 32)}
BATCHES = (8, 16, 32, 64, 128)
BATCH, REPEATS, POLICIES = 32, 9, 4096
DEVICE = "cortex-a53-rpi3-lowbit-neon"
WORKERS, TRIALS = (1, 2, 4), 8
Result = dict[str, object]


def layers(kind: str, count: str) -> Result:
    """Everything before and after training: tracing, prices, the projector."""
    return prices(n.Deep(kind, int(count)), torch.zeros(2, 3, n.SIZE, n.SIZE))


def network(name: str) -> Result:
    """The same for a network of torchvision, traced without its numbers."""
    import torchvision

    with torch.device("meta"):
        return prices(torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224))


def prices(model: torch.nn.Module, x: torch.Tensor) -> Result:
    from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables
    from ddq_search.space import build_space
    from ddq_search.trace import trace
    from hardware_models.model import cost_model

    device = cost_model(DEVICE)
    graph = trace(model, x)
    space = build_space(graph, device)
    factors = device.factors(graph, space)
    with torch.device("cpu"):
        pricing = n.priced(graph, device)
        return timed_prices(
            pricing,
            {
                "trace_s": lambda: trace(model, x),
                "space_s": lambda: build_space(graph, device),
                "factors_s": lambda: device.factors(graph, space),
                "tables_s": lambda: CostTables(space, factors),
                "projector_build_s": lambda: type(pricing.projector)(pricing.tables),
            },
            (LATENCY, FLASH, PEAK_RAM),
        )


def timed_prices(pricing: Pricing, timed: dict[str, Callable[[], object]], costs: tuple[str, ...]) -> Result:
    space, tables = pricing.tables.space, pricing.tables
    choices, scores = n.random_choices(space, POLICIES), n.random_scores(space)
    limits = n.budgets(pricing)
    pair = {cost: limits[cost] for cost in costs[:2]}
    policy = pricing.most_likely(scores, limits, [])
    assert policy is not None
    timed = timed | {
        "price_one_with_arena_s": lambda: pricing.price(policy),
        "price_many_s": lambda: tables.price_many(choices, costs),
        "cheapest_latency_s": lambda: pricing.cheapest(costs[0], {}),
        "project_latency_flash_s": lambda: pricing.most_likely(scores, pair, []),
        "project_three_budgets_s": lambda: pricing.most_likely(scores, limits, []),
    }
    found = {name: median(n.seconds(work, 5)) for name, work in timed.items()}
    return found | {
        "variables": len(space.variables),
        "factors": len(tables.factors),
        "factor_entries": sum(factor.table.size for factor in tables.factors),
        "policies_per_s": round(POLICIES / found["price_many_s"]),
    }


def candidates() -> Result:
    """Prices and projector by the number of candidates, 30 residual layers, an imagined device of any bitwidth."""
    from ddq_search.cost import FLASH, LATENCY

    result: Result = {}
    for count, bits in CANDIDATES.items():
        model, device = n.Deep("residual", 30), n.AnyBits()
        pricing = n.priced(n.traced(model), device, bits)
        space, tables = pricing.tables.space, pricing.tables
        limits, scores, choices = n.budgets(pricing), n.random_scores(space), n.random_choices(space, POLICIES)
        pair = {cost: limits[cost] for cost in (LATENCY, FLASH)}
        result[str(count)] = {
            "bits": bits,
            "factor_entries": sum(factor.table.size for factor in tables.factors),
            "factors_s": median(n.seconds(lambda d=device, p=pricing: d.factors(p.graph, p.tables.space), 5)),
            "policies_per_s": round(
                POLICIES / statistics.median(n.seconds(lambda t=tables, c=choices: t.price_many(c), 5))
            ),
            "project_latency_flash_s": median(
                n.seconds(lambda p=pricing, s=scores, b=pair: p.most_likely(s, b, []), 5)
            ),
            "project_three_budgets_s": median(
                n.seconds(lambda p=pricing, s=scores, b=limits: p.most_likely(s, b, []), 5)
            ),
        }
    return result


def step(kind: str, count: str) -> Result:
    """A search step over a float step of the same network."""
    from hardware_models.model import cost_model

    model, batch = n.Deep(kind, int(count)), n.image_batch(BATCH)
    works = {
        "float": n.plain_step(model, batch),
        "search": n.search_step(model, n.priced(n.traced(model), cost_model(DEVICE)), batch),
    }
    times = n.alternating(works, REPEATS)
    return {f"{name}_s": median(values) for name, values in times.items()} | {
        "ratio": round(n.ratio(times, "search", "float"), 3)
    }


def step_candidates() -> Result:
    """Search steps of several numbers of candidates and the float step, in turns."""
    model, batch = n.Deep("residual", 30), n.image_batch(BATCH)
    works = {"float": n.plain_step(model, batch)}
    for count, bits in CANDIDATES.items():
        works[str(count)] = n.search_step(model, n.priced(n.traced(model), n.AnyBits(), bits), batch)
    times = n.alternating(works, REPEATS)
    return {f"{name}_s": median(values) for name, values in times.items()} | {
        f"{count}_over_{other}": round(n.ratio(times, str(count), other), 3)
        for count in CANDIDATES
        for other in ("float", "2")
    }


def memory(count: str, which: str) -> Result:
    """How far the peak of the process's memory rises over what its libraries need: network, optimizers, three steps."""
    from hardware_models.model import cost_model

    before = peak_bytes()
    model, batch = n.Deep("residual", int(count)), n.image_batch(BATCH)
    if which == "plain":
        work = n.plain_step(model, batch)
    else:
        work = n.search_step(model, n.priced(n.traced(model), cost_model(DEVICE)), batch)
    for _ in range(3):
        work()
    return {"libraries_bytes": before, "rise_bytes": peak_bytes() - before}


def images() -> Result:
    """Steps by the number of images in a batch."""
    from hardware_models.model import cost_model

    model = n.Deep("residual", 30)
    pricing = n.priced(n.traced(model), cost_model(DEVICE))
    result: Result = {}
    for count in BATCHES:
        batch = n.image_batch(count)
        works = {"float": n.plain_step(model, batch), "search": n.search_step(model, pricing, batch)}
        times = n.alternating(works, REPEATS)
        result[str(count)] = {f"{name}_s": median(values) for name, values in times.items()} | {
            "ratio": round(n.ratio(times, "search", "float"), 3)
        }
    return result


def cache() -> Result:
    """Bytes of the cache of decoded images, by the number of images in a folder."""
    from PIL import Image

    from search_spaces.data import load_data

    result: Result = {}
    for count in (200, 400, 800):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DDQ_SEARCH_CACHE"] = f"{folder}/cache"
            pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).numpy()
            for number in range(count):
                path = Path(folder) / "images" / "train" / f"class{number % 2}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[number]).save(path)
            began = time.perf_counter()
            load_data(f"{folder}/images", 0, 0.2, None)
            first_s = time.perf_counter() - began
            size = sum(path.stat().st_size for path in Path(f"{folder}/cache").rglob("*") if path.is_file())
            result[str(count)] = {"cache_bytes": size, "first_load_s": round(first_s, 3)}
    return result


def workers(number: str) -> Result:
    """``tune`` with some workers: trials per minute, from the first trial's start to the last one's end, by the clock.

    ``processor_s`` is what the command and its workers computed, starting them included: what others on the machine
    do does not count in it.
    """
    import optuna

    result: Result = {}
    for count in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "training.float_epochs": 1, "training.joint_epochs": 2, "training.finetune_epochs": 1,
                "training.threads": 1, "search.points": 2, "search.relaxed_points": 0, "search.extra_points": 0,
                "search.uniform": "[[8, 8]]", "data.limit": 600,
            }  # fmt: skip
            command = [sys.executable, "-m", "ddq_search", "tune", "--model", "mlp", "--data", "digits"]
            command += ["--flash", "80%", "--trials", str(TRIALS), "--workers", str(count), "--seed", number]
            command += [
                "--keep-hopeless",
                "--out",
                folder,
                *(f"--set={key}={value}" for key, value in settings.items()),
            ]
            began, before = time.perf_counter(), children_s()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            whole_s, worked_s = time.perf_counter() - began, children_s() - before
            (database,) = Path(folder).glob("*.db")
            (study,) = optuna.get_all_study_names(f"sqlite:///{database}")
            trials = optuna.load_study(study_name=study, storage=f"sqlite:///{database}").trials
            assert all(trial.state.is_finished() for trial in trials)
            span = max(t.datetime_complete for t in trials) - min(t.datetime_start for t in trials)
            result[str(count)] = {
                "trials": len(trials),
                "trials_per_minute": round(60 * len(trials) / span.total_seconds(), 2),
                "command_s": round(whole_s, 2),
                "processor_s": round(worked_s, 2),
            }
    return result


def report(count: str) -> Result:
    """A whole tiny search of a deep network, its run directory and its report."""
    from ddq_search.config import load_config
    from ddq_search.problem import pose
    from ddq_search.record import RunDirectory
    from ddq_search.search import search
    from ddq_search.task import LoaderSource
    from hardware_models.model import cost_model
    from reports.page import build_report

    settings = {
        "training.float_epochs": 1, "training.joint_epochs": 2, "training.finetune_epochs": 1, "search.points": 4,
        "search.relaxed_points": 1, "search.extra_points": 0, "search.uniform": [[8, 8]], "training.norm_batches": 1,
        "training.calibration_batches": 1, "budgets.flash": "80%", "training.threads": 1, "training.batch_size": 16,
    }  # fmt: skip
    source = LoaderSource([n.image_batch(16)] * 2, [n.image_batch(16)])
    model = n.Deep("residual", int(count))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        search(pose(model, source, cost_model(DEVICE), load_config(None, settings)), RunDirectory(Path(folder)))
        run_s = time.perf_counter() - began
        times = n.seconds(lambda: build_report(Path(folder)), 5)
        sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir() if path.is_file()}
    return {
        "run_s": round(run_s, 2),
        "report_s": median(times),
        "report_bytes": sizes["report.html"],
        "front_json_bytes": sizes["front.json"],
        "graph_json_bytes": sizes["graph.json"],
        "history_bytes": sizes["history.jsonl"],
    }


def median(values: list[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
