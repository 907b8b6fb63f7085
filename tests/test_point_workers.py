"""Processes that train the points of a front leave what one process leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.errors import RunError
from ddq_search.judgement import Candidate
from ddq_search.point_workers import train_all
from ddq_search.policy import Policy, uniform
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages, begin
from ddq_search.training import Silent

SETTINGS = {
    "data.limit": 320, "training.float_epochs": 1, "training.finetune_epochs": 1, "training.calibration_batches": 1,
    "training.norm_batches": 1,
}  # fmt: skip
EPOCHS = (1, 2, 1)


class Notes(Silent):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


class Run:
    """A float model, a calibrated supernet and three policies in a run directory."""

    def __init__(self, path, workers, source=None, finetune=True):
        problem = assemble(load_config(None, {**SETTINGS, "training.workers": workers}))
        if source is not None:
            object.__setattr__(problem, "source", source(problem.source))
        self.record, self.notes = RunDirectory(path), Notes()
        path.mkdir(parents=True)
        begin(problem, self.record, self.notes)
        self.stages = Stages(problem, self.record, self.notes)
        self.teacher = self.stages.train_float()
        self.supernet = self.stages.calibrated(self.teacher, sets=2) if finetune else None
        bits = [uniform(problem.space, own, own) for own in (2, 4, 8)]
        self.tasks = [(Policy(f"p{n}", own, "search"), e) for n, (own, e) in enumerate(zip(bits, EPOCHS, strict=True))]

    def train(self) -> list[Candidate]:
        return train_all(self.stages, self.tasks, self.teacher, self.supernet)

    def history(self):
        rows = [{key: row[key] for key in row if key != "seconds"} for row in self.record.history()]
        return sorted(rows, key=lambda row: (str(row["point"]), row["epoch"]))


pytestmark = pytest.mark.usefixtures("one_thread")


def alike(ours, theirs):
    for one, other in zip(ours.train(), theirs.train(), strict=True):
        assert one.policy == other.policy
        assert one.validation == other.validation
        own, its = one.net.state_dict(), other.net.state_dict()
        assert own.keys() == its.keys()
        assert all(torch.equal(own[key], its[key]) for key in own)
    assert ours.history() == theirs.history()


def told(notes, start):
    return [text for text in notes.texts if text.startswith(start)]


@pytest.mark.parametrize("finetune", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_leave_the_same_bits(tmp_path, finetune):
    one, two = (Run(tmp_path / str(workers), workers, finetune=finetune) for workers in (1, 2))
    alike(one, two)
    assert told(two.notes, "policies to train: 3, at a time: 2, threads each: 1")
    assert sorted(told(two.notes, "p")[1:]) == sorted(told(one.notes, "p"))


def test_what_is_trained_already_starts_no_process(tmp_path):
    run = Run(tmp_path / "run", 1)
    before = run.train()
    object.__setattr__(run.stages, "settings", run.stages.settings.model_copy(update={"workers": 2}))
    run.notes.texts.clear()
    assert [candidate.validation for candidate in run.train()] == [candidate.validation for candidate in before]
    assert run.notes.texts == []


class Unsendable:
    """Data that hold a lock, which no other process can be given."""

    def __init__(self, source):
        self._source, self._lock = source, threading.Lock()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)


def test_data_that_cannot_be_sent_are_told_and_trained_on_here(tmp_path):
    one, two = Run(tmp_path / "1", 1), Run(tmp_path / "2", 2, Unsendable)
    alike(one, two)
    assert len(told(two.notes, "training.workers is left out: the model or the data cannot be sent")) == 1


class Elsewhere:
    """Data that do something in other processes than the one they were made in."""

    def __init__(self, source):
        self._source, self._home = source, os.getpid()

    def train(self, **asked):
        if os.getpid() != self._home:
            self.happens()
        return self._source.train(**asked)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)


class Killing(Elsewhere):
    def happens(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(Elsewhere):
    def happens(self):
        raise RunError("the data are gone; bring them back")


@pytest.mark.slow
def test_a_killed_process_is_told_and_its_policies_trained_here(tmp_path):
    one, two = Run(tmp_path / "1", 1), Run(tmp_path / "2", 2, Killing)
    alike(one, two)
    assert len(told(two.notes, "training.workers: a process ended before its time")) == 1


@pytest.mark.slow
def test_what_fails_in_a_process_fails_here(tmp_path):
    with pytest.raises(RunError, match="the data are gone; bring them back"):
        Run(tmp_path / "run", 2, Failing).train()


SEARCH = [
    "--device", "cortex-a53-rpi3-lowbit-neon", "--latency", "90%", "--workers", "2", "--set", "training.threads=1",
    "--set", "data.limit=640", "--set", "training.float_epochs=1", "--set", "training.joint_epochs=1", "--set",
    "training.finetune_epochs=4", "--set", "search.points=4", "--set", "search.extra_points=0", "--set",
    "search.uniform=[]", "--set", "search.relaxed_points=0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_is_stopped_takes_its_processes_along_and_goes_on(tmp_path, number):
    def command(out, *more):
        return [sys.executable, "-m", "ddq_search", "search", *SEARCH, "--out", str(out), *more]

    def tuned(out):
        return [row for row in RunDirectory(out).history() if row["phase"] == "finetune"]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, capture_output=True)
    process = subprocess.Popen(command(broken), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while len(tuned(broken)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    time.sleep(3)
    left = len(tuned(broken))
    time.sleep(3)
    assert len(tuned(broken)) == left < 16, "an orphan goes on training"
    subprocess.run(command(broken, "--resume"), check=True, capture_output=True)
    assert json.loads((broken / "front.json").read_text()) == json.loads((whole / "front.json").read_text())
    assert len(tuned(broken)) == 16
