"""Another budget or another device from a supernet that is trained already: gates, projection, fine-tuning.

The weights, quantizers and the float models come from the run that trained them; only the gates are searched, in a few
steps on frozen weights, and the chosen policies fine-tuned. The result is a run directory of its own.

Settings of what is taken over cannot differ. The float baseline is taken over too, unless a setting of its training
differs; then it is trained again. Where nothing is fine-tuned, so that nothing is trained, it stays what it is.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch

from ddq_search import distributed
from ddq_search.baselines import KINDS, require_able, run_method, take_over
from ddq_search.config import RunConfig
from ddq_search.cost import CostModel
from ddq_search.errors import ConfigError, RunError
from ddq_search.joint import conclude, train_gates
from ddq_search.judgement import Front
from ddq_search.problem import Problem, space_of
from ddq_search.record import RunDirectory
from ddq_search.stages import FIGURES, Stages, begin, known_figures
from ddq_search.supernet import Supernet
from ddq_search.training import Progress, Silent

_OF_FLOAT = ("seed", "model", "data", "training.float_epochs", "training.float_rate")
"""Settings of the float model and its data."""
_OF_SUPERNET = (
    "training.joint_epochs", "training.joint_rate", "search.method", "search.mode", "search.weight_quantizers",
    "search.activation_quantizers", "quantizers",
)  # fmt: skip
"""Settings of the supernet, and of the float baseline that has as many epochs."""
_OF_BASELINE = (
    "joint_epochs", "finetune_epochs", "batch_size", "optimizer", "joint_rate", "finetune_rate", "weight_decay",
    "distillation", "distilled_share", "schedule", "gradient_clip", "accumulate", "ema_decay", "precision",
)  # fmt: skip
"""Training settings that decide what the float baseline becomes."""
ORIGIN = "solved.json"
"""File of a solved run that names the search whose supernet it uses."""


def solve(
    problem: Problem, record: RunDirectory, trained: tuple[Problem, RunDirectory], progress: Progress | None = None
) -> Front:
    """Solves a problem with the supernet of a finished search and writes the results into the run directory.

    A method that chooses policies by scores takes the float model and the scores instead. What is refused is refused
    before anything is written.

    Args:
        problem: the same model and data as the trained one, with other budgets or another device.
        record: where the results go.
        trained: the problem and run directory of the search.
        progress: who is told.

    Raises:
        ConfigError: a setting of what is taken over differs.
        RunError: the search is not finished, its checkpoints cannot be used, or the run directory holds something else.
        PolicyError: the new device needs a precision that was not trained.
    """
    progress = progress or Silent()
    method = problem.config.search.method
    require_same_settings(problem, *trained)
    if method in KINDS:
        require_able(problem, method)
    carried = {name: _carried_over(problem, trained[1], name) for name in _taken_over(problem, trained, progress)}
    supernet = None if method in KINDS else trained_supernet(*trained)
    if supernet is not None:
        problem.space.require_trained(supernet.space)
    distributed.from_first(lambda: _claim(record, trained[1]))
    begin(problem, record, progress)
    for name, checkpoint in carried.items():
        if record.checkpoint_facts(name) is None:
            record.save_checkpoint(name, *checkpoint)
    record.write_json(FIGURES, distributed.from_first(lambda: known_figures(record) or known_figures(trained[1])))
    stages = Stages(problem, record, progress)
    teacher = stages.train_float()
    if supernet is None:
        take_over(trained[1], record)
        return run_method(stages, teacher, method)
    return conclude(stages, train_gates(stages, supernet, teacher, problem.config.search.solve_steps), teacher)


def within_trained(config: RunConfig, device: CostModel, trained: Problem) -> RunConfig:
    """Returns a configuration that pins tensors for which a device offers more than was trained to what was.

    Methods that choose policies by scores train what they choose. A tensor of which nothing was trained is left for
    `solve` to refuse.
    """
    if config.search.method in KINDS:
        return config
    pins: dict[str, int | list[int]] = {}
    for variable in space_of(trained.graph, device, config.space).variables:
        known = trained.space[variable.name].candidates
        shared = [bits for bits in variable.candidates if bits in known]
        if shared and len(shared) < len(variable.candidates):
            pins[variable.name] = shared
    space = config.space.model_copy(update={"pins": {**config.space.pins, **pins}})
    return config.model_copy(update={"space": space}) if pins else config


def require_same_settings(problem: Problem, trained: Problem, run: RunDirectory) -> None:
    """Returns unless a setting of what `solve` takes over differs.

    Raises:
        ConfigError: it does; names all such settings.
    """
    keys = _OF_FLOAT if problem.config.search.method in KINDS else (*_OF_FLOAT, *_OF_SUPERNET)
    differing = [key for key in keys if attrgetter(key)(problem.config) != attrgetter(key)(trained.config)]
    if differing:
        raise ConfigError(
            f"{', '.join(differing)}: what belongs to the networks of {run.path} cannot differ from there; leave it "
            "out, or search again"
        )


def _taken_over(problem: Problem, trained: tuple[Problem, RunDirectory], progress: Progress) -> list[str]:
    """Returns the names of the float models' checkpoints that stay as they are."""
    own, theirs = problem.config.training, trained[0].config.training
    names = ["float"] if own.float_epochs else []
    differing = [f"training.{key}" for key in _OF_BASELINE if getattr(own, key) != getattr(theirs, key)]
    trains = own.finetune_epochs > 0 or problem.config.search.method in KINDS
    if not (trains and differing):
        return [*names, "baseline"]
    progress.note(f"the float baseline is trained again: {_listed(differing)} from {trained[1].path}")
    return names


def _listed(keys: list[str]) -> str:
    return f"{', '.join(keys)} {'differs' if len(keys) == 1 else 'differ'}"


def refuse_solved(record: RunDirectory) -> None:
    """Returns unless the run directory belongs to `solve`, whose policies only have the names of a search's.

    Raises:
        RunError: it does.
    """
    if (record.path / ORIGIN).exists():
        raise RunError(f"{record.path} was solved from {record.read_json(ORIGIN)['run']}; choose another --out")


def _claim(record: RunDirectory, search: RunDirectory) -> None:
    """Marks a run directory as solved from a search; settings alone do not tell one supernet from another."""
    if (record.path / ORIGIN).exists():
        if record.read_json(ORIGIN)["fingerprint"] != search.fingerprint:
            raise RunError(
                f"{record.path} was solved from the supernet of another run than {search.path}; choose another --out"
            )
    elif (record.path / "checkpoints").exists():
        raise RunError(f"{record.path} holds a search, or was solved by an older version; choose another --out")
    record.write_json(ORIGIN, {"run": str(search.path), "fingerprint": search.fingerprint})


def trained_supernet(problem: Problem, record: RunDirectory) -> Supernet:
    """Returns the supernet that a finished search trained.

    Raises:
        RunError: there is none, or it cannot be used.
    """
    tensors, _ = _finished(record, "joint")
    own = {key.removeprefix("module."): value for key, value in tensors.items() if key.startswith("module.")}
    net = problem.supernet(sets=sum(key.startswith("gates.own.") for key in own))
    record.restore("joint", net, own)
    return net


def _carried_over(problem: Problem, record: RunDirectory, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A float model's checkpoint for another problem: its quantizers, switched off, are those of the new space."""
    tensors, facts = _finished(record, name)
    fresh = {f"module.{key}": value for key, value in problem.supernet().state_dict().items()}
    return fresh | {key: value for key, value in tensors.items() if key.startswith("module.model.")}, facts


def _finished(record: RunDirectory, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    loaded = record.load_checkpoint(name)
    if loaded is None:
        raise RunError(
            f"{record.path} holds no finished search (checkpoint {name!r} is missing): finish it first; "
            "post-training runs and the relaxed methods have none"
        )
    return loaded
