"""Our post-training search and Sony's MCT on one float ResNet-8, the same images, at equal bytes of weights.

    python benchmarks/mct/compare.py --mct-python PYTHON [--data digits] [--limit N] [--seeds 0 1 2] [--out OUT]

MCT lives in an environment of its own (`README.md` says how to make it). Weights {2, 4, 8} bits, activations 8 bits, no
weight is trained; budgets are shares of the 8-bit weight bytes. What crosses over is in one folder: ``weights.npz``,
``images.npz`` and ``job.json`` there, a JSON back. Every tool also quantizes the other one's policy, which separates
what was chosen from how it was quantized.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from policy_bytes import layer_key, table, weight_bytes
from safetensors.torch import save_file

from ddq_search.cli.assembly import assemble
from ddq_search.config import BudgetConfig, load_config
from ddq_search.cost import FLASH, Factor
from ddq_search.graph import WEIGHTED, operations
from ddq_search.policy import Policy, uniform
from ddq_search.problem import STATISTICS_EPOCH, evaluate_policy, pose
from ddq_search.ptq import ptq, quantize_policy
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.training import Silent

HERE = Path(__file__).resolve().parent
SHARES = (0.5, 0.3)
SPLITS = ("validation", "test")
PRESENT = "import model_compression_toolkit, torch"


class Clock(Silent):
    """Seconds, elapsed and of the processor, up to the last training step of a run: evaluation comes after it."""

    def __init__(self):
        self.start = self.last = now()

    def step(self, facts):
        self.last = now()

    def seconds(self):
        elapsed, used = (after - before for before, after in zip(self.start, self.last, strict=True))
        return {"seconds": elapsed, "cpu_seconds": used}


def now():
    return time.perf_counter(), time.process_time()


def require_mct(python):
    """Stops with one line where MCT cannot be used."""
    try:
        found = subprocess.run([python, "-c", PRESENT], capture_output=True, text=True).returncode == 0
    except OSError:
        found = False
    if not found:
        raise SystemExit(
            f"error: {python} cannot import model_compression_toolkit and torch; benchmarks/mct/README.md says how to "
            "make an environment for MCT, --mct-python names its interpreter"
        )


def settings_of(options, seed, weights=None):
    """Returns the configuration of everything that happens on our side."""
    return {
        "seed": seed, "data.name": options.data, "data.limit": options.limit,
        "data.validation_fraction": options.validation_fraction, "model.name": "resnet8",
        "model.weights": weights, "training.float_epochs": 0 if weights else options.epochs,
        "training.threads": options.threads, "space.weight_bits": [2, 4, 8], "space.activation_bits": [8],
        "search.mode": "ptq", "search.points": 1, "search.relaxed_points": 0, "search.front_points": 1,
        "search.extra_points": 0, "search.uniform": [], "search.ptq_images": options.images,
    }  # fmt: skip


def train_float(options, seed, folder):
    """Trains the float model both tools start from; returns the file of its weights."""
    problem = assemble(load_config(None, settings_of(options, seed)))
    (folder / "float").mkdir()
    net = Stages(problem, RunDirectory(folder / "float"), Silent()).train_float()
    path = folder / "float.safetensors"
    save_file({name: value.contiguous() for name, value in net.model.state_dict().items()}, str(path))
    return path


def hand_over(problem, options, folder):
    """Writes weights and images for MCT; the calibration images are those of our search."""
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in problem.model.state_dict().items()})
    size = problem.config.training.batch_size
    batches = problem.source.train(seed=problem.config.seed, epoch=STATISTICS_EPOCH, batch_size=size)
    calibration = [x for (x, _), _ in zip(batches, range(options.images // size), strict=False)]
    images = {"calibration": torch.cat(calibration).numpy()}
    for split in SPLITS:
        parts = list(problem.source.plain(split, 250))
        images[split] = torch.cat([x for x, _ in parts]).numpy()
        images[f"{split}_labels"] = torch.cat([y for _, y in parts]).numpy()
    np.savez(folder / "images.npz", **images)


def run_mct(options, problem, tasks, folder):
    """Returns what MCT made of the tasks."""
    job = {
        "channels": problem.source.splits.channels, "classes": len(problem.source.splits.classes),
        "seed": problem.config.seed, "threads": options.threads, "batch_size": problem.config.training.batch_size,
        "tasks": tasks,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    command = [options.mct_python, str(HERE / "quantize_with_mct.py"), str(folder), str(folder / "result.json")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"error: MCT failed:\n{done.stdout[-4000:]}")
    return json.loads((folder / "result.json").read_text())


def run_ours(problem, folder):
    """Returns what our post-training search makes of a problem with one budget."""
    clock = Clock()
    front = ptq(problem, RunDirectory(folder), clock)
    (point,) = [p for p in front.points if p.policy.origin == "search"]
    return {
        "tool": "ours", **clock.seconds(), "validation": point.validation.score, "test": point.test.score,
        "bits": weight_bits(point.policy.bits),
    }  # fmt: skip


def quantize_with_ours(problem, bits, folder):
    """Returns what our post-training mode makes of given weight bits."""
    clock = Clock()
    eight = uniform(problem.space, 8, 8)
    policy = Policy("given", {**eight, **{f"weights/{layer}": value for layer, value in bits.items()}}, "user")
    candidate = quantize_policy(problem, RunDirectory(folder), policy, clock)
    test = evaluate_policy(problem, candidate.net, policy, "test")
    return {
        "tool": "ours", **clock.seconds(), "validation": candidate.validation.score, "test": test.score,
        "bits": dict(bits),
    }  # fmt: skip


def weight_bits(policy):
    """Returns layer → weight bits of a policy of ours."""
    return {name.removeprefix("weights/"): bits for name, bits in policy.items() if name.startswith("weights/")}


class WeightBytesAlone:
    """A device whose flash holds weights and nothing else, without padding: what MCT calls weights memory."""

    def __init__(self, device):
        self._device = device

    def __getattr__(self, name):
        return getattr(self._device, name)

    def factors(self, graph, space):
        """Returns the device's factors, those of flash replaced by values · bits / 8 of every weight tensor."""
        factors = [factor for factor in self._device.factors(graph, space) if factor.cost != FLASH]
        for op in operations(graph):
            if op.kind in WEIGHTED:
                name = space.weights_of[op.name]
                table = np.array([op.weights * bits / 8 for bits in space[name].candidates])
                factors.append(Factor(FLASH, op.name, "weights", (name,), table))
        return factors


def posed(options, seed, weights, budget_bytes=None):
    """Returns the problem of choosing weight bits, within a budget of weight bytes where one is given."""
    config = load_config(None, settings_of(options, seed, weights))
    problem = assemble(config)
    if budget_bytes is not None:
        config = config.model_copy(update={"budgets": BudgetConfig(flash=budget_bytes / 1024)})
    return pose(problem.model, problem.source, WeightBytesAlone(problem.device), config)


def compare(options, seed, folder):
    """Returns the results of both tools on one float model."""
    weights = Path(options.weights) if options.weights else train_float(options, seed, folder)
    problem = posed(options, seed, str(weights))
    parameters = dict(problem.model.named_parameters())
    eight = weight_bits(uniform(problem.space, 8, 8))
    sizes = {layer: parameters[f"{layer}.weight"].numel() for layer in eight}
    hand_over(problem, options, folder)
    results = [{"budget": "8 bit", "policy": "uniform", **quantize_with_ours(problem, eight, folder / "ours-8")}]
    tasks = [{"budget": "8 bit", "policy": "uniform"}]
    for share in SHARES:
        budget = f"{share:.0%}"
        limit = share * weight_bytes(sizes, eight)
        found = run_ours(posed(options, seed, str(weights), limit), folder / f"ours-{budget}")
        results.append({"budget": budget, "policy": "ours", **found})
        tasks.append({"budget": budget, "policy": "MCT", "weight_bytes": limit})
        tasks.append({"budget": budget, "policy": "ours", "bits": {layer_key(k): v for k, v in found["bits"].items()}})
    theirs = run_mct(options, problem, tasks, folder)
    for row in theirs["results"]:
        bits = {layer: row["bits"][layer_key(layer)] for layer in sizes}
        results.append({**row, "tool": "MCT", "bits": bits})
        if row["policy"] == "MCT":
            again = quantize_with_ours(problem, bits, folder / f"ours-theirs-{row['budget']}")
            results.append({"budget": row["budget"], "policy": "MCT", **again})
    order = ["8 bit", *(f"{share:.0%}" for share in SHARES)]
    results.sort(key=lambda row: (order.index(row["budget"]), row["policy"], row["tool"]))
    return {"seed": seed, "sizes": sizes, "float": theirs["float"], "versions": theirs["versions"], "results": results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mct-python", required=True, help="interpreter of the environment that has MCT")
    parser.add_argument("--data", default="digits", help="as ddq-search's --data")
    parser.add_argument("--limit", type=int, help="training images, validation included")
    parser.add_argument("--validation-fraction", type=float, default=0.2, help="of these images")
    parser.add_argument("--epochs", type=int, default=20, help="of the float model")
    parser.add_argument("--weights", help="float ResNet-8 to start from, instead of training one")
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="JSON file; entries of other data stay")
    options = parser.parse_args()
    require_mct(options.mct_python)
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(compare(options, seed, Path(folder)))
        print(f"\nseed {seed}, float model {runs[-1]['float']}\n\n{table(runs[-1])}", flush=True)
    if options.out:
        document = json.loads(options.out.read_text()) if options.out.exists() else {}
        document[Path(options.data).name] = {"command": shown_command(), "threads": options.threads, "runs": runs}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def shown_command():
    """Returns the command line without the folders of this machine."""
    parts = [Path(part).name if part.startswith("/") else part for part in sys.argv[1:]]
    return shlex.join(["python", "benchmarks/mct/compare.py", *parts])


if __name__ == "__main__":
    main()
