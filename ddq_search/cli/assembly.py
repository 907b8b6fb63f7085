"""From a configuration to a posed problem, and from a run directory back to its problem and trained policies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddq_search.budget import LABELS, show
from ddq_search.cli.tables import price_text
from ddq_search.config import RunConfig, load_config
from ddq_search.cost import CostModel
from ddq_search.errors import ConfigError, PolicyError, RunError
from ddq_search.interchange import SUFFIXES, read_any_policy
from ddq_search.policy import Policy
from ddq_search.problem import Problem, inputs, pose
from ddq_search.record import RunDirectory
from ddq_search.supernet import Supernet
from ddq_search.task import Classification, DataSource, LoaderSource, SuperResolution, Task
from hardware_models.devices import find_device
from search_spaces.data import load_data
from search_spaces.image_source import ImageSource
from search_spaces.models import build_model, build_upscaler, build_without_data
from search_spaces.patch_source import PatchSource
from search_spaces.patches import is_patches, load_patches
from search_spaces.super_resolution import REACH
from search_spaces.weights import load_weights


def assemble(config: RunConfig) -> Problem:
    """Loads data, builds the model and prices it.

    Raises:
        DDQError: any part of the configuration does not fit.
    """
    _use_threads(config)
    device = device_of(config)
    model, source, task = _learned(config)
    if config.model.weights is not None:
        load_weights(model, config.model.weights)
    return pose(model, source, device, config, task)


def _learned(config: RunConfig) -> tuple[nn.Module, DataSource, Task]:
    """The model, untrained, its data, and the task that the data ask for."""
    spec, data = config.model.name, config.data
    if is_patches(data.name):
        patches = load_patches(data.name, config.seed, data.validation_fraction, data.limit)
        channels, height, width = patches.train.low.shape[1:]
        torch.manual_seed(config.seed)
        model = build_upscaler(spec, channels, patches.factor, (height, width))
        return model, PatchSource(data.name, patches), SuperResolution(REACH * patches.factor)
    splits = load_data(data.name, config.seed, data.validation_fraction, data.limit)
    torch.manual_seed(config.seed)
    model = build_model(spec, splits.channels, len(splits.classes), splits.image_size)
    return model, ImageSource(data.name, splits), Classification()


def posed_again(problem: Problem, config: RunConfig) -> Problem:
    """Returns the problem of the same model and data for another device or other budgets.

    Raises:
        CostError, BudgetError: the device is unknown, or no policy meets the budgets on it.
    """
    _use_threads(config)
    return pose(problem.model, problem.source, device_of(config), config, problem.task)


def device_of(config: RunConfig) -> CostModel:
    """Returns the device that a configuration names, with as many threads as it says.

    Raises:
        CostError: there is none.
    """
    return find_device(config.device.profile, config.device.threads)


def _use_threads(config: RunConfig) -> None:
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)


def stored_config(path: Path) -> Path:
    """Returns the path of a run's configuration.

    Raises:
        RunError: the directory holds no run.
    """
    stored = path / "config.toml"
    if not stored.exists():
        raise RunError(f"{path} holds no run (no config.toml); `ddq-search search --out {path}` makes one")
    return stored


def begin_run(path: Path, config: RunConfig, *, resume: bool) -> RunDirectory:
    """Returns the run directory to write to.

    Raises:
        RunError: it holds a run and ``resume`` is False, or it holds a run of another configuration.
    """
    stored = path / "config.toml"
    if stored.exists():
        if not resume:
            raise RunError(f"{path} already holds a run; add --resume to go on with it, or choose another --out")
        before = load_config(stored, {})
        if before.fingerprint() != config.fingerprint():
            changed = ", ".join(_differences(before.asked(), config.asked()))
            raise RunError(f"{path} belongs to another configuration (different: {changed}); choose another --out")
    return RunDirectory(path)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    result = []
    for key in after:
        if isinstance(after[key], Mapping) and isinstance(before.get(key), Mapping):
            result += _differences(before[key], after[key], f"{prefix}{key}.")
        elif before.get(key) != after[key]:
            result.append(f"{prefix}{key}")
    return result


def open_run(path: Path) -> tuple[Problem, RunDirectory]:
    """Returns the problem of a run directory and its record; computed here, wherever the run was.

    Raises:
        RunError: the directory holds no run.
    """
    problem = assemble(load_config(stored_config(path), {"training.device": "cpu"}))
    return problem, RunDirectory(path, problem.fingerprint)


def open_policy(problem: Problem, record: RunDirectory, wanted: str) -> tuple[Policy, Supernet, str]:
    """Returns a policy, the supernet that carries its weights, and how it was trained.

    Args:
        problem: the run's problem.
        record: the run's directory.
        wanted: ``best``, the name of one of the run's policies, or the path of a policy file. A file that equals
            none of the run's policies gets the supernet's weights with batch-norm statistics re-estimated.

    Raises:
        PolicyError: there is no such policy, or the file does not fit.
        RunError: the run has no weights for it.
    """
    policy = find_policy(problem, record, wanted)
    return (policy, *_weights(problem, record, policy))


def _fresh_name(name: str, known: Mapping[str, Policy]) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "user"
    return safe if safe not in known else f"{safe}-edited"


def _weights(problem: Problem, record: RunDirectory, policy: Policy) -> tuple[Supernet, str]:
    net = problem.supernet()
    trained = record.load_checkpoint(f"policy-{policy.name}")
    if trained is not None:
        record.restore(f"policy-{policy.name}", net, trained[0])
        return net, "fine-tuned"
    joint = record.load_checkpoint("joint")
    if joint is None:
        raise RunError(f"{record.path} has no trained supernet yet; finish the search with --resume")
    state = {key.removeprefix("module."): value for key, value in joint[0].items() if key.startswith("module.")}
    record.restore("joint", net, {k: v for k, v in state.items() if not k.startswith("gates.")}, strict=False)
    net.set_policy(policy.bits)
    net.reestimate_norms(inputs(problem, problem.config.training.norm_batches))
    return net, "supernet weights, batch-norm statistics re-estimated, not fine-tuned"


def front_document(record: RunDirectory) -> dict[str, Any]:
    """Returns what front.json holds.

    Raises:
        RunError: the search has not finished, or the file is broken.
    """
    if not (record.path / "front.json").exists():
        raise RunError(
            f"{record.path} is not finished (no front.json); `ddq-search search --out {record.path} --resume` goes on"
        )
    document = record.read_json("front.json")
    if not isinstance(document, dict) or not document.keys() >= {"format", "version", "best", "points"}:
        raise RunError(
            f"{record.path / 'front.json'} is broken; `ddq-search search --out {record.path} --resume` writes it again"
        )
    return document


def named_policies(problem: Problem, record: RunDirectory) -> dict[str, Policy]:
    """Returns the run's policies by name."""
    result = {}
    for entry in front_document(record)["points"]:
        bits = {f"{role}/{key}": value for role in ("weights", "activations") for key, value in entry[role].items()}
        result[str(entry["name"])] = Policy(str(entry["name"]), bits, str(entry["origin"]))
    return result


def price_lines(problem: Problem, policy: Policy) -> list[tuple[str, str, str]]:
    """Returns (cost, price, verdict against its budget) rows."""
    price = problem.pricing.price(policy.bits)
    rows = []
    for cost, value in price.items():
        limit = problem.budgets.get(cost)
        verdict = "" if limit is None else f"{'within' if value <= limit else 'OVER'} {show(cost, limit)}"
        text = price_text(cost, value, problem.pricing.reference, problem.device.calibration)
        rows.append((LABELS[cost], text, verdict))
    return rows


def sample_images(problem: Problem, count: int) -> torch.Tensor:
    """Returns the first images of the validation split ``[N, C, H, W]``."""
    gathered: list[torch.Tensor] = []
    for x, _ in itertools.takewhile(lambda _: sum(map(len, gathered)) < count, problem.source.plain("validation", 64)):
        gathered.append(x)
    return torch.cat(gathered)[:count]


def find_policy(problem: Problem, record: RunDirectory, wanted: str) -> Policy:
    """Returns a policy by name, ``best`` or path, without its weights.

    Raises:
        PolicyError: there is no such policy, or the file does not fit.
    """
    known = named_policies(problem, record)
    if wanted == "best":
        wanted = str(front_document(record)["best"])
    if wanted in known:
        return known[wanted]
    if Path(wanted).suffix.lower() not in SUFFIXES and not Path(wanted).exists():
        endings = " or ".join(SUFFIXES)
        raise PolicyError(f"no policy {wanted!r} in {record.path}; it has {', '.join(known)}; a file ends in {endings}")
    policy = read_any_policy(Path(wanted), problem.space, problem.graph)
    same = [p for p in known.values() if dict(p.bits) == dict(policy.bits)]
    return same[0] if same else replace(policy, name=_fresh_name(policy.name, known), origin="user")


def assemble_shape(config: RunConfig, input_shape: str, classes: int) -> Problem:
    """Returns a problem that can be inspected and priced, for a model and an input shape ``CxHxW`` without data."""
    try:
        channels, height, width = (int(part) for part in input_shape.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--input {input_shape!r}: expected CxHxW, such as 3x32x32") from None
    if min(channels, height, width) < 1:
        raise ConfigError(f"--input {input_shape!r}: sizes must be positive")
    torch.manual_seed(config.seed)
    model = build_without_data(config.model.name, channels, classes, (height, width))
    zeros = (torch.zeros(1, channels, height, width), torch.zeros(1, dtype=torch.long))
    return pose(model, LoaderSource([zeros], [zeros]), device_of(config), config)
