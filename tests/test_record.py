"""The run directory: atomic writes, history, checkpoints, lock; every mishap is one RunError and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from ddq_search.errors import RunError
from ddq_search.record import RunDirectory, environment, locked, write_atomically


@pytest.fixture
def record(tmp_path):
    return RunDirectory(tmp_path / "run", "print")


def tensors():
    return {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "c": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


def leftovers(path):
    return [entry for entry in path.rglob("*") if entry.name.endswith(".tmp")]


# -- small files --------------------------------------------------------------------------------------------------


def test_json_round_trip_without_non_finite_numbers(record):
    record.write_json("x.json", {"a": [1.5, float("nan")], "b": {"c": float("-inf"), 2: "é"}, "d": (1, 2)})
    assert record.read_json("x.json") == {"a": [1.5, None], "b": {"c": None, "2": "é"}, "d": [1, 2]}


def test_missing_and_broken_json(record):
    with pytest.raises(RunError, match=r"cannot read .*front\.json.*finished run"):
        record.read_json("front.json")
    record.write_text("front.json", '{"a": 1')
    with pytest.raises(RunError, match=r"front\.json is broken"):
        record.read_json("front.json")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(record, monkeypatch, call):
    record.write_text("x.json", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (type(record.path), "replace", full)))
    with pytest.raises(RunError, match=r"cannot write .*x\.json: No space left on device; free some space"):
        record.write_text("x.json", "new")
    monkeypatch.undo()
    assert (record.path / "x.json").read_text() == "old"
    assert not leftovers(record.path)


def test_full_disk_during_a_checkpoint_keeps_the_last_one(record, monkeypatch):
    first = tensors()
    record.save_checkpoint("float", first, {"epoch": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        record.save_checkpoint("float", tensors(), {"epoch": 2})
    found, facts = record.load_checkpoint("float")
    assert facts == {"epoch": 1}
    assert all(torch.equal(found[key], value) for key, value in first.items())
    assert not leftovers(record.path)


def test_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    record = RunDirectory(tmp_path / "file")
    with pytest.raises(RunError, match="cannot write"):
        record.write_text("x.json", "{}")
    with pytest.raises(RunError, match="cannot write"):
        record.append_history({"phase": "float"})
    with pytest.raises(RunError, match="choose another --out"), locked(tmp_path / "file"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_directory(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        RunDirectory(folder).write_text("x.json", "{}")
    with pytest.raises(RunError, match="choose another --out"), locked(folder):
        pass


def test_write_makes_missing_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "c.txt", b"x")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"x"


# -- history ------------------------------------------------------------------------------------------------------


def test_history_survives_a_line_cut_short(record):
    record.write_text("config.toml", "")
    for epoch in range(3):
        record.append_history({"phase": "float", "point": None, "epoch": epoch, "train_loss": float("nan")})
    with (record.path / "history.jsonl").open("a") as file:
        file.write('{"phase": "float", "epo')
    assert [row["epoch"] for row in record.history()] == [0, 1, 2]
    assert record.history()[0]["train_loss"] is None
    record.drop_history("float", None, 2)
    record.append_history({"phase": "float", "point": None, "epoch": 2})
    lines = (record.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


def test_drop_history_touches_one_phase_and_point(record):
    record.write_text("config.toml", "")
    for phase, point in (("float", None), ("finetune", "p00"), ("finetune", "p01")):
        for epoch in range(2):
            record.append_history({"phase": phase, "point": point, "epoch": epoch})
    record.drop_history("finetune", "p01", 1)
    assert [(r["phase"], r["point"], r["epoch"]) for r in record.history()] == [
        ("float", None, 0), ("float", None, 1), ("finetune", "p00", 0), ("finetune", "p00", 1), ("finetune", "p01", 0),
    ]  # fmt: skip


def test_no_history_yet(record):
    assert record.history() == []
    record.drop_history("float", None, 0)
    assert not (record.path / "history.jsonl").exists()


# -- checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoint_round_trip(record):
    before = tensors()
    record.save_checkpoint("joint", before, {"epoch": 3, "loss": 0.1})
    after, facts = record.load_checkpoint("joint")
    assert facts == {"epoch": 3, "loss": 0.1}
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())
    record.remove_checkpoint("joint")
    assert record.load_checkpoint("joint") is None
    record.remove_checkpoint("joint")


def test_checkpoint_of_another_configuration_is_refused(record):
    record.save_checkpoint("joint", tensors(), {"epoch": 1})
    with pytest.raises(RunError, match=r"joint\.safetensors belongs to another configuration, model, data or task"):
        RunDirectory(record.path, "other").load_checkpoint("joint")
    assert RunDirectory(record.path).load_checkpoint("joint") is not None  # a reader without a problem


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "foreign", "header"])
def test_damaged_checkpoint(record, damage):
    record.save_checkpoint("joint", tensors(), {"epoch": 1})
    path = record.path / "checkpoints" / "joint.safetensors"
    data = path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save

        path.write_bytes(save({"x": torch.zeros(2)}))
    else:
        path.write_bytes(
            {"truncated": data[: len(data) // 2], "empty": b"", "garbage": b"x" * 500, "header": data[:9]}[damage]
        )
    with pytest.raises(RunError, match=r"joint\.safetensors is broken .*delete it to repeat its phase"):
        record.load_checkpoint("joint")


# -- lock and environment -----------------------------------------------------------------------------------------


def test_second_process_is_refused(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from ddq_search.errors import RunError; from ddq_search.record import locked\n"
        "try:\n"
        "    with locked(Path(sys.argv[1])): print('held')\n"
        "except RunError as error: print(error)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "run")]
    with locked(tmp_path / "run"):
        inside = subprocess.run(run, capture_output=True, text=True, check=True)
        assert "in use by another process" in inside.stdout
    after = subprocess.run(run, capture_output=True, text=True, check=True)
    assert after.stdout.strip() == "held"


def test_environment_says_what_a_repetition_needs():
    facts = environment()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    json.dumps(facts)
