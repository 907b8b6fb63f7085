"""Hessian traces against exact ones, and scores that are computed once."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddq_search.baselines import sensitivities, take_over
from ddq_search.baselines.hessian import Curvature, hutchinson, random_signs, squared_errors, traces
from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.errors import RunError
from ddq_search.record import RunDirectory
from ddq_search.space import build_space
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from ddq_search.training import Silent
from tests.toys import AnyDevice


def test_a_diagonal_quadratic_is_exact_with_one_vector():
    factors = torch.tensor([0.5, 3.0, -1.0, 7.25])
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = 0.5 * (factors * x * x).sum() + x.sum()
    (found,) = hutchinson(loss, [x], random_signs(torch.Generator().manual_seed(1)))
    assert found == pytest.approx(9.75, abs=1e-5)


def test_any_quadratic_is_exact_over_all_vectors():
    """The mean over all 2⁴ sign vectors is the trace; two coupled tensors do not disturb each other."""
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    x = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randn(1, generator=generator, dtype=torch.float64).requires_grad_()
    both = torch.cat([x, y])
    loss = 0.5 * both @ matrix @ both
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        vector = torch.tensor(signs, dtype=torch.float64)
        found.append(hutchinson(loss, [x, y], lambda t, v=vector: v[: t.numel()]))
    mean = np.mean(found, axis=0)
    assert mean == pytest.approx([float(matrix.diagonal()[:4].sum()), float(matrix[4, 4])])
    assert np.std([one[1] for one in found]) == pytest.approx(0, abs=1e-12)


def test_a_tensor_without_curvature_has_trace_zero():
    x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = 2 * x.sum() + (y**2).sum()
    assert hutchinson(loss, [x, y], torch.ones_like) == [0.0, 4.0]


def test_standard_error_of_the_mean():
    assert Curvature(3, [1.0, 3.0]).trace == 2.0
    assert Curvature(3, [1.0, 3.0]).standard_error == pytest.approx(1.0)
    assert math.isinf(Curvature(3, [1.0]).standard_error)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    net = Supernet(model, graph, build_space(graph, AnyDevice(), weight_bits=(2, 4, 8), activation_bits=(2, 4, 8)))
    x = torch.randn(16, 1, 4, 4)
    return net, x, torch.randint(0, 3, (16,))


def exact_trace(function, at):
    hessian = torch.autograd.functional.hessian(function, at)
    return float(hessian.reshape(at.numel(), at.numel()).diagonal().sum())


def test_traces_of_a_network_agree_with_its_whole_hessian(network):
    """Within five standard errors, which are below 10 % of every trace; of logits also in closed form."""
    net, x, y = network
    model = net.model
    conv, fc = model[0], model[3]
    hidden, shares = F.relu(conv(x)).detach(), model(x).detach().softmax(-1)

    def after_conv(a):
        return F.cross_entropy(fc(a.flatten(1)), y)

    exact = {
        "weights/0": exact_trace(lambda w: after_conv(F.relu(F.conv2d(x, w, conv.bias))), conv.weight.detach()),
        "weights/3": exact_trace(lambda w: F.cross_entropy(F.linear(hidden.flatten(1), w, fc.bias), y), fc.weight.data),
        "activations/0": exact_trace(after_conv, hidden),
        "activations/3": float((shares * (1 - shares)).sum() / len(x)),
    }
    found = traces(net, [(x, y)], F.cross_entropy, vectors=100, seed=0)
    assert set(exact) <= set(found)
    for name, trace_ in exact.items():
        assert found[name].standard_error < 0.1 * trace_, name
        assert abs(found[name].trace - trace_) < 5 * found[name].standard_error, name
    assert found["weights/0"].elements == 18
    assert found["activations/0"].elements == 16 * 8
    again = traces(net, [(x, y)], F.cross_entropy, vectors=2, seed=0)
    assert again["activations/0"].estimates == found["activations/0"].estimates[:2]


def test_squared_errors_are_those_of_each_tensor_alone(network):
    net, x, _ = network
    net.calibrate([x])
    errors = squared_errors(net, [x, x])
    rows = {variable.name: row for row, variable in enumerate(net.space.variables)}
    weight, hidden = net.model[0].weight.detach(), F.relu(net.model[0](x)).detach()
    for name, value in (("weights/0", weight), ("activations/0", hidden)):
        quantizer = net.quantizers[rows[name]]
        expected = [
            float((quantizer.fake_quantize(value.clone(), k) - value).detach().square().sum()) for k in range(3)
        ]
        assert errors[name] == pytest.approx(expected, rel=1e-5)
        assert errors[name][0] > errors[name][1] > errors[name][2] > 0


SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 400, "budgets.flash": "80%", "training.float_epochs": 2,
    "training.joint_epochs": 1, "training.calibration_batches": 2, "training.threads": 1, "search.hessian_vectors": 2,
}  # fmt: skip


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def scored(self) -> int:
        return sum("scoring" in text for text in self.texts)


def stages_of(path: Path, **changes: object) -> Stages:
    problem = assemble(load_config(None, {**SETTINGS, **changes}))
    path.mkdir(exist_ok=True)
    return Stages(problem, RunDirectory(path, problem.fingerprint), Notes())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    stages = stages_of(tmp_path_factory.mktemp("scores") / "a")
    return stages, stages.train_float()


def test_scores_are_zero_at_8_bits_or_fall_with_bits(first):
    stages, teacher = first
    measured, hessian = (sensitivities(stages, teacher, score) for score in ("measured", "hessian"))
    for row, variable in enumerate(stages.problem.space.variables):
        candidates = variable.candidates
        assert measured[row, candidates.index(8)] == 0
        if len(candidates) > 1:
            assert (np.diff(hessian[row, : len(candidates)]) <= 0).all()
    assert measured.max() > 0
    assert hessian.max() > 0
    document = json.loads((stages.record.path / "sensitivities.json").read_text())
    for row, entry in zip(hessian, document["scores"]["hessian"]["variables"], strict=True):
        for index, score in enumerate(row[: len(entry["candidates"])]):
            tensors = entry["tensors"].values()
            expected = sum(max(t["trace"], 0) / t["elements"] * t["squared_errors"][index] for t in tensors)
            assert score == pytest.approx(expected)


def test_scores_are_computed_once_and_serve_other_budgets(first, tmp_path):
    stages, teacher = first
    scores = {score: sensitivities(stages, teacher, score) for score in ("measured", "hessian")}
    notes = len(stages.progress.texts)
    for score, values in scores.items():
        assert np.array_equal(sensitivities(stages, teacher, score), values)
    assert len(stages.progress.texts) == notes
    other = stages_of(tmp_path / "b", **{"budgets.flash": "60%", "budgets.latency": "150%"})
    take_over(stages.record, other.record)
    assert np.array_equal(sensitivities(other, teacher, "hessian"), scores["hessian"])
    assert other.progress.scored() == 0
    changed = stages_of(tmp_path / "c", **{"space.weight_bits": [4, 8]})
    take_over(stages.record, changed.record)
    assert not np.array_equal(sensitivities(changed, teacher, "measured"), scores["measured"])
    assert changed.progress.scored() == 1


def test_a_broken_file_of_scores_is_named(first, tmp_path):
    _, teacher = first
    stages = stages_of(tmp_path)
    for text in ("{", '{"format": "another"}'):
        (tmp_path / "sensitivities.json").write_text(text)
        with pytest.raises(RunError, match=r"sensitivities\.json"):
            sensitivities(stages, teacher, "measured")
