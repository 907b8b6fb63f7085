"""What it costs the network to have one tensor at one precision: measured, or from the Hessian. Computed once.

* ``measured``: distance of the output to the float model's with one variable at one candidate and the rest at 8 bits,
  minus that of uniform 8 bit (`ddq_search.baselines.untrained`).
* ``hessian``: ``tr H / numel · ‖x_q − x‖²`` of the float model, summed over the tensors of the variable
  (`ddq_search.baselines.hessian`); a negative trace counts as zero.

Neither depends on budgets or prices, so scores are kept in the run directory (``sensitivities.json``) with a
fingerprint of what they do depend on, and serve a resumed run and other budgets.

Legend: V variables, C candidates of the widest variable.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddq_search.baselines.hessian import squared_errors, traces
from ddq_search.baselines.untrained import Untrained
from ddq_search.distributed import from_first
from ddq_search.errors import RunError
from ddq_search.methods import quantizers_of
from ddq_search.policy import uniform
from ddq_search.problem import STATISTICS_EPOCH
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet

FILE = "sensitivities.json"
Score = Literal["measured", "hessian"]


def sensitivities(stages: Stages, teacher: Supernet, score: Score) -> NDArray[np.float64]:
    """Returns the scores ``[V, C]`` from the run directory, or computes and keeps them; absent candidates have 0.

    Raises:
        RunError: the file is broken.
    """
    known = from_first(lambda: _read(stages.record))
    key = _fingerprint(stages, teacher, score)
    entry = known["scores"].get(score)
    if entry is not None and entry["fingerprint"] == key:
        return _matrix(stages, [row["scores"] for row in entry["variables"]])
    stages.progress.note(f"scoring every tensor at every precision ({score})")
    compute: Callable[[Stages, Supernet], list[dict[str, Any]]] = {"measured": _measured, "hessian": _hessian}[score]
    rows = compute(stages, teacher)
    known["scores"][score] = {"fingerprint": key, "variables": rows}
    stages.record.write_json(FILE, known)
    return _matrix(stages, [row["scores"] for row in rows])


def take_over(trained: RunDirectory, record: RunDirectory) -> None:
    """Copies the scores of one run to another of the same model and data, which uses those that fit it.

    Raises:
        RunError: the file is broken.
    """
    if (trained.path / FILE).exists():
        record.write_json(FILE, _read(trained))


def _read(record: RunDirectory) -> dict[str, Any]:
    empty = {"format": "ddq-search sensitivities", "version": 1, "scores": {}}
    if not (record.path / FILE).exists():
        return empty
    found = record.read_json(FILE)
    if not isinstance(found, dict) or found.get("format") != empty["format"] or found.get("version") != 1:
        raise RunError(f"{record.path / FILE} is no file of sensitivities; delete it to compute them again")
    return found


def _fingerprint(stages: Stages, teacher: Supernet, score: Score) -> str:
    """Identifies weights, data, space, quantizers and settings: all that scores depend on."""
    problem, digest = stages.problem, hashlib.sha256()
    for name, tensor in teacher.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings = [stages.settings.calibration_batches, stages.settings.batch_size, stages.frozen]
    if score == "hessian":
        settings.append(problem.config.search.hessian_vectors)
    space = [[variable.name, variable.candidates] for variable in problem.space.variables]
    quantizers = repr(quantizers_of(problem.config))
    data = problem.source.fingerprint
    document = [score, problem.config.seed, data, settings, space, quantizers, digest.hexdigest()]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:32]


def _matrix(stages: Stages, rows: list[list[float]]) -> NDArray[np.float64]:
    result = np.zeros((len(rows), max(map(len, rows))))
    for row, scores in enumerate(rows):
        result[row, : len(scores)] = scores
    return result


def _measured(stages: Stages, teacher: Supernet) -> list[dict[str, Any]]:
    problem = stages.problem
    untrained = Untrained(problem, teacher, stages.settings.calibration_batches)
    full = uniform(problem.space, 8, 8)
    reference = untrained.distance(full)
    return [
        {
            "name": variable.name,
            "candidates": list(variable.candidates),
            "scores": [untrained.distance({**full, variable.name: bits}) - reference for bits in variable.candidates],
        }
        for variable in problem.space.variables
    ]


def _hessian(stages: Stages, teacher: Supernet) -> list[dict[str, Any]]:
    problem, settings = stages.problem, stages.settings
    batches = problem.source.train(seed=problem.config.seed, epoch=STATISTICS_EPOCH, batch_size=settings.batch_size)
    pairs = list(problem.compute.placed(itertools.islice(batches, settings.calibration_batches)))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if stages.frozen:  # no labels: the distance to the float model's own output
            return stages.task.distance(output, output.detach())
        return stages.task.loss(output, y)

    curvature = traces(teacher, pairs, loss, problem.config.search.hessian_vectors, problem.config.seed)
    net = stages.calibrated(teacher)
    errors = squared_errors(net, (x for x, _ in pairs))
    rows = []
    for variable in problem.space.variables:
        tensors = [variable.name] if variable.role == "weights" else [f"activations/{m}" for m in variable.members]
        tensors = [name for name in tensors if name in curvature]
        scores = [
            sum(max(curvature[name].trace, 0.0) / curvature[name].elements * errors[name][index] for name in tensors)
            for index in range(len(variable.candidates))
        ]
        known = {
            name: {
                "trace": curvature[name].trace,
                "standard_error": curvature[name].standard_error,
                "elements": curvature[name].elements,
                "squared_errors": errors[name],
            }
            for name in tensors
        }
        rows.append(
            {"name": variable.name, "candidates": list(variable.candidates), "scores": scores, "tensors": known}
        )
    return rows
