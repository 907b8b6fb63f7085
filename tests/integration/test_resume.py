"""Killed at any moment and resumed, a run ends as if nothing had happened; and it takes up nothing that is not its own.

Moments are drawn from what uninterrupted runs of all kinds do (`interrupted_runs`): steps, stages, files.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.interrupted_runs import ForkServer, Kill, chosen, moments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = {
    "training.float_epochs": 2, "training.joint_epochs": 2, "training.finetune_epochs": 1, "training.batch_size": 32,
    "training.norm_batches": 2, "training.calibration_batches": 1, "training.threads": 1, "data.limit": 320,
    "search.points": 2, "search.relaxed_points": 1, "search.extra_points": 1, "search.uniform": "[[8, 8]]",
    "search.solve_steps": 12, "search.ptq_images": 64,
}  # fmt: skip
SEARCH = [
    "search", "--model", "networks:Residual", "--data", "synthetic:3x9x9x5", "--latency", "97%", "--flash", "80%",
    *(f"--set={key}={value}" for key, value in SETTINGS.items()),
]  # fmt: skip
EXTRAS = ["--baselines", "--set=training.ema_decay=0.9", "--set=training.accumulate=2"]
KINDS: dict[str, Callable[[Path], list[str]]] = {
    "search": lambda root: [*SEARCH, *EXTRAS],
    "ptq": lambda root: [*SEARCH, "--mode", "ptq"],
    "solve": lambda root: ["solve", str(root / "search"), "--flash", "70%", "--latency", "98%"],
    "supernet": lambda root: [*SEARCH, "--mode", "supernet"],
    "dqss": lambda root: [*SEARCH, "--method", "dqss"],
    "dqss-ptq": lambda root: [*SEARCH, "--method", "dqss", "--mode", "ptq"],
    "dq": lambda root: [*SEARCH, "--method", "dq"],
    "bayesian-bits": lambda root: [*SEARCH, "--method", "bayesian-bits"],
    "hawq-ilp": lambda root: [*SEARCH, "--method", "hawq-ilp", "--set=search.hessian_vectors=1"],
    "lsq-uniform": lambda root: [*SEARCH, "--method", "lsq-uniform", "--set=search.weight_quantizers=['lsq']"],
    "solve-more": lambda root: ["solve", str(root / "supernet"), "--flash", "70%", "--set=training.finetune_epochs=2"],
}
"""Kind of run → its command; one that follows another starts from its uninterrupted run."""
PHASES = {
    "search": ("float", "joint", "tuning-p", "tuning-r", "tuning-x", "baseline", "tuning-ilp", "tuning-greedy"),
    "ptq": ("float", "gates", "tuning-p"),
    "solve": ("gates", "tuning-p"),
    "supernet": ("float", "joint", "gates", "tuning-p", "baseline"),
    "dqss": ("joint-", "tuning-p", "baseline"),
    "dqss-ptq": ("joint-", "tuning-p"),
    "dq": ("joint-", "tuning-p", "baseline"),
    "bayesian-bits": ("joint-", "tuning-p", "baseline"),
    "hawq-ilp": ("float", "tuning-p", "baseline"),
    "lsq-uniform": ("float", "tuning-p", "baseline"),
    "solve-more": ("gates", "tuning-p", "baseline"),
}
KILLS = {"search": 14, "ptq": 7, "solve": 7} | dict.fromkeys(list(PHASES)[3:], 6)


def _outcome(run: Path) -> dict[str, Any]:
    """Everything a run leaves for people and for later commands, without times."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return {
        "front": json.loads((run / "front.json").read_text()),
        "baselines": [path.read_text() for path in run.glob("baselines.json")],
        "policies": {p.name: p.read_text() for kind in ("policies", "references") for p in (run / kind).glob("*.json")},
        "history": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        "checkpoints": {p.name: _digest(load_file(p)) for p in (run / "checkpoints").iterdir()},
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()),
    }


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as warm:
        yield warm


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run of every kind, and its log."""
    root = tmp_path_factory.mktemp("whole")
    for kind, command in KINDS.items():
        log = root / f"{kind}.log"
        assert server.run([*command(root), "--out", str(root / kind)], log) == 0, log.read_text()
    return root


def _interrupted(server: ForkServer, command: list[str], folder: Path, kills: list[Kill]) -> Iterator[tuple[int, str]]:
    """Runs a command in ``folder``, again and again; yields how each interrupted one ended, and what it had said."""
    number, log = 0, folder / "log"
    for kill in kills:
        code = server.run([*command, "--out", str(folder / f"run{number}"), "--resume"], log, kill)
        if code == 0:  # the moment passed before the kill arrived: the next run begins anew
            number += 1
            code = server.run([*command, "--out", str(folder / f"run{number}"), "--resume"], log, kill)
        yield code, log.read_text()
    last = [*command, "--out", str(folder / f"run{number}"), "--resume"]
    assert server.run(last, log) == 0, log.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(server: ForkServer, whole: Path, tmp_path: Path, kind: str) -> None:
    trace = moments(whole / f"{kind}.log")
    for phase in PHASES[kind]:
        assert any(moment.kind == f"step {phase}" for moment in trace), f"no step of {phase} to be killed in"
    kills = chosen(trace, KILLS[kind], random.Random(f"{kind} 0"))
    for kill, (code, said) in zip(kills, _interrupted(server, KINDS[kind](whole), tmp_path, kills), strict=True):
        assert code == -signal.SIGKILL, f"{kill}: {said}"
    expected = _outcome(whole / kind)
    for run in tmp_path.glob("run*"):
        found = _outcome(run)
        for part, value in expected.items():
            assert found[part] == value, part


def test_stopped_by_the_user(server: ForkServer, whole: Path, tmp_path: Path) -> None:
    kills = chosen(moments(whole / "ptq.log"), 4, random.Random(1), signal.SIGINT)
    for kill, (code, said) in zip(kills, _interrupted(server, KINDS["ptq"](whole), tmp_path, kills), strict=True):
        assert code == 130, f"{kill}: {said}"
        assert "interrupted; the same command with --resume goes on" in said
        assert "Traceback" not in said
    assert all(_outcome(run) == _outcome(whole / "ptq") for run in tmp_path.glob("run*"))


def test_killed_between_a_policy_and_the_end_of_its_training(server: ForkServer, whole: Path, tmp_path: Path) -> None:
    """The policy's checkpoint is written, the one of its training not yet removed."""
    shutil.copytree(whole / "ptq", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copy(checkpoints / "policy-p00.safetensors", checkpoints / "tuning-p00.safetensors")
    assert server.run([*KINDS["ptq"](whole), "--out", str(tmp_path / "run"), "--resume"], tmp_path / "log") == 0
    assert _outcome(tmp_path / "run") == _outcome(whole / "ptq")


def test_a_process_of_its_own_computes_the_same(whole: Path, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "ddq_search", *KINDS["ptq"](whole), "--out", str(tmp_path / "run"), "--resume"]
    history = tmp_path / "run" / "history.jsonl"
    process = subprocess.Popen(command, cwd=repository / "tests", stdout=subprocess.DEVNULL)
    while process.poll() is None and not (history.exists() and history.stat().st_size):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=repository / "tests", check=True, capture_output=True)
    assert _outcome(tmp_path / "run") == _outcome(whole / "ptq")


# -- what does not belong to a run ----------------------------------------------------------------------------------


def _refusal(server: ForkServer, command: list[str], out: Path) -> str:
    log = out.parent / "log"
    assert server.run([*command, "--out", str(out), "--resume"], log) == 1
    said = log.read_text()
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("kind", "donor", "names"),
    [
        ("ptq", "search", ("float", "policy-p00")),
        ("search", "ptq", ("float", "policy-p00", "baseline")),
        ("solve", "search", ("float", "policy-p00")),
        ("solve", "ptq", ("gates",)),
    ],
)
def test_checkpoints_of_other_runs(
    server: ForkServer, whole: Path, tmp_path: Path, kind: str, donor: str, names: tuple[str, ...]
) -> None:
    shutil.copytree(whole / kind, tmp_path / "run")
    for name in names:
        path = tmp_path / "run" / "checkpoints" / f"{name}.safetensors"
        own = path.read_bytes()
        source = whole / donor / "checkpoints" / path.name
        if not source.exists():  # this kind of run has no such phase
            source = next((whole / donor / "checkpoints").iterdir())
        shutil.copy(source, path)
        said = _refusal(server, KINDS[kind](whole), tmp_path / "run")
        assert f"checkpoint {path} belongs to another configuration" in said
        path.write_bytes(own)


@pytest.mark.parametrize("kind", ["search", "solve"])
def test_other_settings(server: ForkServer, whole: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(whole / kind, tmp_path / "run")
    command = [*KINDS[kind](whole), "--flash", "75%", "--set=search.penalty=2"]
    assert "different: budgets.flash, search.penalty" in _refusal(server, command, tmp_path / "run")


def test_solved_runs_know_their_supernet(server: ForkServer, whole: Path, tmp_path: Path) -> None:
    """The settings of a solved run are those of its own budgets: they do not tell two supernets apart."""
    other = [*SEARCH, *EXTRAS, "--peak-ram", "100%"]
    assert server.run([*other, "--out", str(tmp_path / "other")], tmp_path / "log") == 0
    shutil.copytree(whole / "solve", tmp_path / "run")
    command = ["solve", str(tmp_path / "other"), *KINDS["solve"](whole)[2:]]
    said = _refusal(server, command, tmp_path / "run")
    assert f"{tmp_path / 'run'} was solved from the supernet of another run than {tmp_path / 'other'}" in said


def test_a_search_and_a_solved_run_do_not_mix(server: ForkServer, whole: Path, tmp_path: Path) -> None:
    """Policies of the same names, by the same settings, found in another way."""
    shutil.copytree(whole / "search", tmp_path / "search")
    same = ["--latency", "97%", "--flash", "80%"]
    said = _refusal(server, ["solve", str(whole / "search"), *same], tmp_path / "search")
    assert f"{tmp_path / 'search'} holds a search" in said
    assert server.run(["solve", str(whole / "search"), *same, "--out", str(tmp_path / "solve")], tmp_path / "log") == 0
    assert f"{tmp_path / 'solve'} was solved" in _refusal(server, [*SEARCH, *EXTRAS], tmp_path / "solve")
