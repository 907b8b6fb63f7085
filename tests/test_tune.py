"""The outer loop: studies resume, interrupted trials go on, failures are told; the search itself is replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from ddq_search import tune
from ddq_search.config import RunConfig, load_config
from ddq_search.errors import ConfigError, RunError
from ddq_search.record import RunDirectory

BASE = load_config(None, {"seed": 3})


class _Search:
    """Stands for `ddq_search.search.search`: the figures follow from the settings; ``act`` may raise."""

    def __init__(self, act: Callable[[int], None] = lambda number: None) -> None:
        self.act, self.seen = act, list[tuple[str, float]]()

    def __call__(self, problem: Any, record: RunDirectory, progress: Any) -> Any:
        config: RunConfig = problem.config
        self.seen.append((record.path.name, config.training.joint_rate))
        self.act(len(self.seen))
        point = SimpleNamespace(
            validation=SimpleNamespace(score=90 - config.search.penalty),
            price={"latency_s": config.training.joint_rate, "flash_bytes": 1000.0},
            policy=SimpleNamespace(bits={"weights/conv1": 8}),
        )
        return SimpleNamespace(point=lambda name: point)


def _study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, search: _Search, trials: int, base: RunConfig = BASE
) -> optuna.Study:
    monkeypatch.setattr(tune, "search", search)
    return tune.run_study(base, lambda config: SimpleNamespace(config=config), folder, trials=trials)  # type: ignore[arg-type, return-value]


def _settings(study: optuna.Study) -> list[dict[str, float]]:
    return [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]


def test_settings_lie_around_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = _Search()
    study = _study(tmp_path, monkeypatch, search, 3)
    assert [name for name, _ in search.seen] == ["0000", "0001", "0002"]
    assert all(0.3 <= rate / BASE.training.joint_rate <= 3 for _, rate in search.seen)
    assert study.metric_names == ["validation score", "latency_s", "flash_bytes"]
    assert study.trials[0].user_attrs["run"] == str(tmp_path / "trials" / "0000")
    assert (tmp_path / "tune.db").exists()


def test_a_resumed_study_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    expected = _settings(_study(whole, monkeypatch, _Search(), 4))
    _study(parts, monkeypatch, _Search(), 2)
    assert _settings(_study(parts, monkeypatch, _Search(), 4)) == expected
    assert len({tuple(entry.items()) for entry in expected}) == 4


def test_enough_trials_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path, monkeypatch, _Search(), 2)
    again = _Search()
    _study(tmp_path, monkeypatch, again, 2)
    assert again.seen == []


def test_an_interrupted_trial_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    expected = _settings(_study(whole, monkeypatch, _Search(), 3))
    first = _Search(interrupt)
    with pytest.raises(KeyboardInterrupt):
        _study(cut, monkeypatch, first, 3)
    second = _Search(lambda number: interrupt(number + 1))  # and once more, at its first trial
    with pytest.raises(KeyboardInterrupt):
        _study(cut, monkeypatch, second, 3)
    third = _Search()
    study = _study(cut, monkeypatch, third, 3)
    assert first.seen[1] == second.seen[0] == third.seen[0], "the same folder and the same settings"
    assert _settings(study) == expected


def test_failures_are_told_and_several_in_a_row_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise RunError("training diverged")

    with pytest.raises(RunError, match="3 trials failed one after another, the last: training diverged"):
        _study(tmp_path, monkeypatch, _Search(fail), 5)


def test_single_failures_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes(number: int) -> None:
        if number % 3:
            raise RunError("training diverged")

    study = _study(tmp_path, monkeypatch, _Search(sometimes), 2)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 2
    assert len(study.get_trials(states=(TrialState.FAIL,))) == 4


def test_a_folder_belongs_to_one_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path, monkeypatch, _Search(), 1)
    with pytest.raises(RunError, match="study of another configuration"):
        _study(tmp_path, monkeypatch, _Search(), 1, load_config(None, {"seed": 4}))


@pytest.mark.parametrize("storage", ["nonsense://x", "sqlite:////no/such/folder/x.db"])
def test_storage_that_does_not_open(tmp_path: Path, storage: str) -> None:
    with pytest.raises(ConfigError, match="cannot open the study in"):
        tune.run_study(BASE, lambda config: pytest.fail("never asked"), tmp_path, trials=1, storage=storage)
