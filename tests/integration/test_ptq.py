"""Post-training search: weights stay, labels of calibration images are never read, few images are enough."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ddq_search.batches import SameBatches
from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.errors import ConfigError
from ddq_search.problem import STATISTICS_EPOCH
from ddq_search.ptq import quantize_policy
from ddq_search.record import RunDirectory
from ddq_search.search import search

SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 500, "device.profile": "cortex-a53-rpi3-lowbit-neon",
    "budgets.flash": "80%", "training.float_epochs": 2, "training.finetune_epochs": 1, "training.threads": 1,
    "search.points": 2, "search.relaxed_points": 0, "search.extra_points": 0, "search.uniform": [[8, 8]],
    "search.mode": "ptq", "search.ptq_images": 128, "search.solve_steps": 5,
}  # fmt: skip


class Unlabelled:
    """A source whose training labels are wrong in every epoch but those of the float training."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(self.source, name)

    def train(self, *, seed, epoch, batch_size):
        self.seen = getattr(self, "seen", set()) | {epoch}
        for x, y in self.source.train(seed=seed, epoch=epoch, batch_size=batch_size):
            yield x, (torch.full_like(y, -1) if epoch >= STATISTICS_EPOCH else y)


def run(path, source=None, **changes):
    problem = assemble(load_config(None, SETTINGS | changes))
    if source is not None:
        problem = dataclasses.replace(problem, source=source(problem.source))
    return problem, search(problem, RunDirectory(path))


def test_labels_are_never_read_and_weights_stay(tmp_path):
    problem, front = run(tmp_path / "a")
    blind, same = run(tmp_path / "b", Unlabelled)
    documents = [json.loads((tmp_path / name / "front.json").read_text()) for name in "ab"]
    assert documents[0]["points"] == documents[1]["points"]
    assert {epoch for epoch in blind.source.seen if epoch > 1} == {STATISTICS_EPOCH}
    float_weights = front.points[0].net.model.state_dict()
    tensors, _ = RunDirectory(tmp_path / "a", problem.fingerprint).load_checkpoint("float")
    for name, value in float_weights.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, tensors[f"module.model.{name}"]), name
    assert all(point.within_budgets for point in front.points if point.policy.origin == "search")
    phases = {row["phase"] for row in RunDirectory(tmp_path / "a").history()}
    assert phases == {"float", "gates", "finetune"}
    assert same.best == front.best


def test_the_same_images_in_every_epoch():
    source = assemble(load_config(None, SETTINGS)).source
    images = SameBatches(source, STATISTICS_EPOCH, 2)
    first, second = (torch.cat([x for x, _ in images.train(seed=0, epoch=e, batch_size=32)]) for e in (0, 5))
    assert torch.equal(first, second)
    assert len(first) == 64
    assert images.train_batches(32) == 2


def test_too_few_or_too_many_images(tmp_path):
    with pytest.raises(ConfigError, match="less than one batch"):
        run(tmp_path, **{"search.ptq_images": 32})
    with pytest.raises(ConfigError, match="ptq_images"):
        load_config(None, {"search.ptq_images": 2000})


def test_a_given_policy_becomes_what_the_search_makes_of_it(tmp_path):
    problem, front = run(tmp_path / "search")
    point = front.points[0]
    given = quantize_policy(problem, RunDirectory(tmp_path / "given"), point.policy)
    assert given.validation == point.validation
    for name, value in point.net.state_dict().items():
        assert name.startswith("gates.") or torch.equal(value, given.net.state_dict()[name]), name
