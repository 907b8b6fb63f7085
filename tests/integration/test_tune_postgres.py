"""Several workers on one study, two of them killed in mid-trial: no finished trial is lost, the number is exact."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState

from ddq_search.record import RunDirectory
from ddq_search.tune_queue import is_finished, origin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = {
    "training.float_epochs": 1, "training.joint_epochs": 6, "training.finetune_epochs": 1, "search.points": 2,
    "search.extra_points": 0, "search.relaxed_points": 0, "search.uniform": "[[8, 8]]", "training.norm_batches": 2,
    "data.limit": 300, "training.batch_size": 8, "training.threads": 1,
}  # fmt: skip
TRIALS = 8
HEARTBEAT_S = 2


def _postgres_programs() -> Path | None:
    """Returns the folder of initdb and pg_ctl: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "pg_ctl").exists() and (place / "initdb").exists()), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def postgres() -> Iterator[str]:
    """URL of a database in a cluster of its own; PostgreSQL refuses to run as root, so root lends it a user."""
    pytest.importorskip("psycopg", reason="psycopg is missing: pip install 'ddq-search[postgres]'")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")
    root = os.geteuid() == 0
    if root and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and runuser is missing")
    identity = ["runuser", "-u", "postgres", "--"] if root else []
    home = Path("/tmp") / f"ddq-postgres-{os.getpid()}"  # short: it holds the socket
    home.mkdir(mode=0o700)
    if root:
        shutil.chown(home, "postgres")
    port = _free_port()

    def control(*arguments: str) -> None:
        command = [*identity, str(programs / "pg_ctl"), "-D", str(home / "data"), "-w", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    options = ["--auth=trust", "--username=ddq", "--no-sync", "--encoding=UTF8"]
    initdb = [*identity, str(programs / "initdb"), "-D", str(home / "data"), *options]
    try:
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/")
        flags = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {home}"
        control("start", "-l", str(home / "log"), "-o", flags)
        yield f"postgresql+psycopg://ddq@127.0.0.1:{port}/postgres"
        control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _command(out: Path, host: str | None, *more: str) -> list[str]:
    """``ddq-search tune``, on a machine of another name where one is given: then only heartbeats tell who is dead."""
    renamed = f"from ddq_search import tune_queue; tune_queue.HOST = {host!r}; " if host else ""
    program = ["-c", f"{renamed}from ddq_search.cli import main; main()"] if host else ["-m", "ddq_search"]
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    return [
        sys.executable, *program, "tune", "--data", "digits", "--model", "mlp", "--device",
        "cortex-m4-stm32l4r5-ddq", "--latency", "85%", "--flash", "60%",
        *settings, "--out", str(out), "--trials", str(TRIALS), "--heartbeat", str(HEARTBEAT_S), *more,
    ]  # fmt: skip


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


@contextlib.contextmanager
def _observed(url: str, seconds: float = 120) -> Iterator[optuna.Study]:
    """The study in a storage, as soon as there is one."""
    engine = sqlalchemy.create_engine(url)
    _await(lambda: sqlalchemy.inspect(engine).has_table("trial_heartbeats"), seconds, "the tables")
    engine.dispose()
    storage = optuna.storages.RDBStorage(url)
    try:
        _await(lambda: optuna.get_all_study_names(storage), seconds, "the study")
        (name,) = optuna.get_all_study_names(storage)
        yield optuna.load_study(study_name=name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _await(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def _searching(study: optuna.Study, folder: Path) -> dict[int, FrozenTrial]:
    """Returns running trials with at least two epochs of their joint training behind them, by number."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return {
        trial.number: trial
        for trial in running
        if len(trial.user_attrs.get("losses", ())) > 1
        and not (folder / f"trials/{origin(trial):04d}/front.json").exists()
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process with its workers, which would finish the study without it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _history(folder: Path, trial: FrozenTrial) -> list[dict[str, Any]]:
    return RunDirectory(folder / f"trials/{origin(trial):04d}").history()


def _check_outcome(
    study: optuna.Study, folder: Path, finished_before: dict[int, Any], killed: dict[int, list[dict[str, Any]]]
) -> None:
    """Checks the study; ``killed``: number of a trial → what its history held when its worker died."""
    trials = study.get_trials()
    assert sum(map(is_finished, trials)) == TRIALS, "exactly the number that was asked for"
    assert not [trial.number for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    for number, values in finished_before.items():
        assert trials[number].values == values, "a finished trial stays as it was"
    for number, rows in killed.items():
        assert trials[number].state == TrialState.FAIL
        (successor,) = [t for t in trials if number in t.system_attrs.get("retry_history", []) and is_finished(t)]
        assert successor.params == trials[number].params
        assert len(rows) > 2
        assert _history(folder, successor)[: len(rows) - 1] == rows[:-1], "seconds included: gone on with, not repeated"
    for trial in (trial for trial in trials if trial.state == TrialState.COMPLETE):
        names = {meta.filename for meta in get_all_artifact_meta(trial, storage=study._storage)}
        assert {"front.json", "p00.json"} <= names


def _tell_takeover(study: optuna.Study, killed: dict[int, list[dict[str, Any]]], when: dict[int, datetime]) -> None:
    for number in killed:
        (successor,) = [t for t in study.get_trials() if number in t.system_attrs.get("retry_history", [])]
        assert successor.datetime_start is not None
        waited_s = (successor.datetime_start - when[number]).total_seconds()
        print(f"trial {number}: {len(killed[number])} epochs when killed, gone on with after {waited_s:.1f} s")


def test_two_of_four_machines_die(postgres: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    logs = {f"machine-{n}": tmp_path / f"{n}.log" for n in range(4)}
    workers = {host: _start(_command(folder, host, "--storage", postgres), log) for host, log in logs.items()}
    killed: dict[int, list[dict[str, Any]]] = {}
    when: dict[int, datetime] = {}
    before: dict[int, Any] = {}
    try:
        with _observed(postgres) as study:
            for _ in range(2):
                victim = _victim(study, folder, workers)
                before |= {t.number: t.values for t in study.get_trials(states=(TrialState.COMPLETE,))}
                worker = workers[victim.user_attrs["host"]]
                worker.kill()
                worker.wait()
                when[victim.number] = datetime.now()
                if not study.get_trials(deepcopy=False)[victim.number].state.is_finished():
                    killed[victim.number] = _history(folder, victim)
            codes = [worker.wait(timeout=600) for worker in workers.values()]
            said = "\n".join(log.read_text() for log in logs.values())
            assert sorted(codes) == [-signal.SIGKILL, -signal.SIGKILL, 0, 0], said
            assert len(killed) == 2, "both died in mid-trial"
            assert said.count("going on with trial") >= 2
            _check_outcome(study, folder, before, killed)
            _tell_takeover(study, killed, when)
    finally:
        for worker in workers.values():
            _end(worker)


def _victim(study: optuna.Study, folder: Path, workers: dict[str, subprocess.Popen[bytes]]) -> FrozenTrial:
    """Waits for a trial in mid-search whose worker lives."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for trial in _searching(study, folder).values():
            if workers[trial.user_attrs["host"]].poll() is None:
                return trial
        time.sleep(0.1)
    pytest.fail("no trial came to its joint training in 240 s")


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_two_of_four_local_workers_die(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder, log = tmp_path / "study", tmp_path / "log"
    folder.mkdir()
    url = request.getfixturevalue("postgres") if kind == "postgres" else f"sqlite:///{folder / 'tune.db'}"
    parent = _start(_command(folder, None, "--workers", "4", "--storage", url), log)
    try:
        _await(lambda: "worker 4: process" in log.read_text(), 120, "four workers")
        workers = [int(line.split()[-1]) for line in log.read_text().splitlines() if ": process " in line]
        with _observed(url) as study:
            _await(lambda: len(_searching(study, folder)) >= 2, 240, "trials in mid-search")
            before = {t.number: t.values for t in study.get_trials(states=(TrialState.COMPLETE,))}
            searching = _searching(study, folder)
            killed, when = {}, {}
            for number, pid in list(_holders(folder, searching, workers).items())[:2]:
                os.kill(pid, signal.SIGKILL)
                killed[number], when[number] = _history(folder, searching[number]), datetime.now()
            assert parent.wait(timeout=600) == 0, log.read_text()
            assert log.read_text().count("was killed by signal 9; the others go on with its trial") == 2
            _check_outcome(study, folder, before, killed)
            _tell_takeover(study, killed, when)
    finally:
        _end(parent)


def _holders(folder: Path, trials: dict[int, FrozenTrial], workers: list[int]) -> dict[int, int]:
    """Returns the process that holds the lock of each trial's run directory (Linux)."""
    holders = {}
    for number, trial in trials.items():
        inode = (folder / f"trials/{origin(trial):04d}/.lock").stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and fields[5].endswith(f":{inode}") and int(fields[4]) in workers:
                holders[number] = int(fields[4])
    return holders


def test_interrupted_workers_leave_a_study_that_goes_on(tmp_path: Path) -> None:
    folder, log = tmp_path / "study", tmp_path / "log"
    folder.mkdir()
    command = _command(folder, None, "--workers", "2")
    parent = _start(command, log)
    try:
        with _observed(f"sqlite:///{folder / 'tune.db'}") as study:
            _await(lambda: _searching(study, folder), 240, "a trial in mid-search")
            parent.send_signal(signal.SIGINT)
            assert parent.wait(timeout=120) == 130, log.read_text()
            assert "interrupted; the same command goes on" in log.read_text()
            before = {t.number: t.values for t in study.get_trials(states=(TrialState.COMPLETE,))}
            left = study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
            assert left
            assert {t.state for t in left} == {TrialState.WAITING}, "put back in order"
            begun = {t.system_attrs["retry_history"][-1]: _history(folder, t) for t in left}
            assert subprocess.run(command, capture_output=True, check=False).returncode == 0
            _check_outcome(study, folder, before, {n: rows for n, rows in begun.items() if len(rows) > 2})
            finished = [trial for trial in study.get_trials() if is_finished(trial)]
            assert {origin(trial) for trial in left} <= {origin(trial) for trial in finished}
    finally:
        _end(parent)
