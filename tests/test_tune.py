"""The outer loop: studies resume, interrupted trials go on, failures are told; the search itself is replaced."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ddq_search import tune, tune_queue, tune_study
from ddq_search.cli.assembly import assemble
from ddq_search.config import RunConfig, load_config
from ddq_search.errors import ConfigError, RunError
from ddq_search.policy import Policy
from ddq_search.problem import evaluate_policy, inputs
from ddq_search.record import RunDirectory, locked
from ddq_search.search import search
from ddq_search.training import Silent
from ddq_search.tune_queue import REASON, STOPPED, TRACEBACK, Queue, finished, origin, put_back
from ddq_search.tune_space import applied
from ddq_search.tune_study import StudyPlan, open_study
from ddq_search.tune_watch import WatchedRun

BASE = load_config(None, {"seed": 3})


@pytest.fixture(autouse=True)
def _unsynchronised() -> Iterator[None]:
    """No test pulls the plug, so SQLite need not wait for the disk."""

    def connect(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", connect)
    yield
    event.remove(Engine, "connect", connect)


class _Search:
    """Stands for `ddq_search.search.search`: the figures follow from the settings; ``act`` may raise."""

    def __init__(self, act: Callable[[int], None] = lambda number: None) -> None:
        self.act, self.seen = act, list[tuple[str, float]]()

    def __call__(self, problem: Any, record: RunDirectory, progress: Any) -> Any:
        config: RunConfig = problem.config
        self.seen.append((record.path.name, config.training.joint_rate))
        self.act(len(self.seen))
        point = SimpleNamespace(
            validation=SimpleNamespace(score=90 - config.search.penalty, loss=config.search.penalty),
            price={"latency_s": config.training.joint_rate, "flash_bytes": 1000.0},
            policy=SimpleNamespace(bits={"weights/conv1": 8}),
        )
        return SimpleNamespace(point=lambda name: point)


def _study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, search: _Search, trials: int, base: RunConfig = BASE, **plan: Any
) -> optuna.Study:
    monkeypatch.setattr(tune, "search", search)
    return tune.run_study(base, lambda config: SimpleNamespace(config=config), folder, StudyPlan(trials, **plan))  # type: ignore[arg-type, return-value]


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


def test_a_trial_that_any_error_ends_does_not_block_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was put back as if its worker had been interrupted: every worker that took it died, for ever."""

    def poison(number: int) -> None:
        if number == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    search = _Search(poison)
    study = _study(tmp_path, monkeypatch, search, 2)
    assert [name for name, _ in search.seen] == ["0000", "0001", "0002"]
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    told = study.trials[0].user_attrs
    assert told[REASON] == "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"
    assert "in poison" in told[TRACEBACK]


def test_errors_of_any_kind_in_a_row_end_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise KeyError("conv1")

    with pytest.raises(RunError, match="3 trials failed one after another, the last: KeyError: 'conv1'"):
        _study(tmp_path, monkeypatch, _Search(fail), 5)


def test_ctrl_c_that_a_library_made_another_error_of_puts_the_trial_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("half imported") from None

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _study(tmp_path, monkeypatch, _Search(interrupt), 1)
    states = [trial.state for trial in open_study(BASE, tmp_path, StudyPlan(1)).trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]


def test_a_folder_belongs_to_one_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path, monkeypatch, _Search(), 1)
    with pytest.raises(RunError, match="study of another configuration"):
        _study(tmp_path, monkeypatch, _Search(), 1, load_config(None, {"seed": 4}))


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        (
            "nonsense://x",
            "cannot open the study in nonsense://x: .*; start the database, or correct the URL: postgresql",
        ),
        ("sqlite:////no/such/folder/x.db", "cannot open .*; the file's folder must exist and be writable"),
        ("nonsense", "--storage nonsense:… is no URL of a database; expected sqlite:///FILE or postgresql"),
    ],
)
def test_storage_that_does_not_open(tmp_path: Path, storage: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tune.run_study(BASE, lambda config: pytest.fail("never asked"), tmp_path, StudyPlan(1, storage=storage))


# -- objectives, samplers, pruners -------------------------------------------------------------------------------------


class _LookingSearch(_Search):
    """A search that is looked at four times; the loss of trial t at look i is ``losses[t][i]``."""

    def __init__(self, losses: list[list[float]]) -> None:
        super().__init__()
        self.losses, self.looks = losses, 0

    def __call__(self, problem: Any, record: RunDirectory, progress: Any) -> Any:
        point = super().__call__(problem, record, progress)
        assert isinstance(record, WatchedRun)
        for look, loss in enumerate(self.losses[len(self.seen) - 1]):
            self.looks += 1
            record._judge(f"joint {look}", look, loss)
        return point


def test_a_scalar_study_minimises_the_loss_within_the_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(tmp_path, monkeypatch, _Search(), 3, objective="scalar", sampler="random")
    assert study.metric_names == ["validation loss"]
    assert study.best_value == min(trial.params["search.penalty"] for trial in study.trials)


def test_a_pruner_stops_what_lies_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median pruner starts after five trials; the sixth is worse than their median from the first look on."""
    good = [[1.0, 0.8, 0.6, 0.5]] * 5
    search = _LookingSearch([*good, [3.0, 2.9, 2.8, 2.7], good[0]])
    study = _study(tmp_path, monkeypatch, search, 7, objective="scalar", pruner="median")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5 + [
        TrialState.PRUNED,
        TrialState.COMPLETE,
    ]
    assert search.looks == 6 * 4 + 1
    assert study.trials[5].user_attrs[STOPPED] == "pruned at joint 0: validation loss 3"
    assert study.trials[5].intermediate_values == {0: 3.0}


def test_a_pruner_in_a_multi_objective_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--pruner median: Optuna prunes single-objective studies only"):
        _study(tmp_path, monkeypatch, _Search(), 1, pruner="median")
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize("keep", [False, True])
def test_hopeless_trials_of_a_multi_objective_study_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """Limits at look 0: 1.4 + 0.2 after four trials, 1.55 + 0.275 after the fifth; all are non-dominated."""

    class AllEqual(_LookingSearch):
        def __call__(self, problem: Any, record: RunDirectory, progress: Any) -> Any:
            super().__call__(problem, record, progress)
            point = SimpleNamespace(
                validation=SimpleNamespace(score=1.0, loss=1.0), price={"latency_s": 1.0, "flash_bytes": 1.0},
                policy=SimpleNamespace(bits={}),
            )  # fmt: skip
            return SimpleNamespace(point=lambda name: point)

    losses = [[1.0, 1.0], [1.4, 1.0], [1.2, 1.0], [1.1, 1.0], [1.55, 1.0], [1.85, 1.0]]
    study = _study(tmp_path, monkeypatch, AllEqual(losses), 6, stop_hopeless=not keep)
    stopped = [trial.number for trial in study.trials if trial.state == TrialState.FAIL]
    assert stopped == ([] if keep else [5])
    if not keep:
        assert study.trials[5].user_attrs[STOPPED] == "hopeless at joint 0: validation loss 1.85 is above 1.825"


def test_a_loss_that_is_not_finite_fails_the_trial_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = _LookingSearch([[float("nan")], [1.0]])
    study = _study(tmp_path, monkeypatch, search, 1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert "not finite (joint 0)" in study.trials[0].user_attrs[REASON]


def test_every_pruner_that_is_offered_can_be_made_and_is_documented(repository: Path) -> None:
    """The threshold pruner was offered although it needs a bound."""
    documented = (repository / "docs" / "tuning.md").read_text(encoding="utf-8")
    for name, make in tune_study._pruners().items():
        assert isinstance(make(), optuna.pruners.BasePruner)
        assert f"`{name}`" in documented


@pytest.mark.parametrize("name", ["random", "NSGAIISampler", "gp"])
def test_samplers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    expected = _settings(_study(whole, monkeypatch, _Search(), 3, sampler=name))
    _study(parts, monkeypatch, _Search(), 1, sampler=name)
    assert _settings(_study(parts, monkeypatch, _Search(), 3, sampler=name)) == expected
    assert len({tuple(entry.items()) for entry in expected}) == 3


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"sampler": "clever"}, "unknown sampler 'clever'; available: bruteforce, cmaes, gp"),
        ({"sampler": "cmaes"}, "--sampler cmaes does not fit this study: If the study is being used for multi"),
        ({"sampler": "bruteforce"}, "--sampler bruteforce does not fit this study"),
        ({"objective": "scalar", "pruner": "axe"}, "unknown pruner 'axe'; available: hyperband, median, nop"),
        (
            {"objective": "scalar", "pruner": "threshold"},
            "unknown pruner 'threshold'; available: hyperband, median, nop",
        ),
        ({"objective": "best"}, "unknown objective 'best'; available: multi, scalar"),
    ],
)
def test_names_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _study(tmp_path, monkeypatch, _Search(), 1, **plan)


def test_a_folder_belongs_to_one_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path, monkeypatch, _Search(), 1)
    with pytest.raises(RunError, match="study of another objective or search space"):
        _study(tmp_path, monkeypatch, _Search(), 1, objective="scalar")


def test_a_driver_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddq-search\[postgres\]'") as error:
        _study(tmp_path, monkeypatch, _Search(), 1, storage="postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql+psycopg://me:geheim@localhost:notaport/db",
        "postgresql+psycopg://me:geheim",
        "postgresql+psycopg:/me:geheim@localhost/db",
        "postgresql+psycopg://me:ge@geheim@localhost/db",
        "nonsense://me:geheim@localhost/db",
        "nonsense://localhost/db?password=geheim",
        "me:geheim@localhost/db",
        "geheim@localhost:1/db",
    ],
)
def test_no_message_holds_the_password_of_a_storage(tmp_path: Path, storage: str) -> None:
    """A URL that could not be parsed was shown as it is."""
    assert "geheim" not in tune_study.shown(storage)
    with pytest.raises(ConfigError) as error:
        open_study(BASE, tmp_path, StudyPlan(1, storage=storage))
    assert "geheim" not in str(error.value)


def test_a_refused_study_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrected command read of another configuration, though there was no study."""
    folder = tmp_path / "study"
    with pytest.raises(ConfigError):
        _study(folder, monkeypatch, _Search(), 1, storage="nonsense://x")
    assert not folder.exists()
    study = _study(folder, monkeypatch, _Search(), 1, load_config(None, {"seed": 7}))
    assert len(study.trials) == 1


def test_a_processor_that_is_not_there_is_told_before_there_is_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trials failed of it, one after another."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    search, folder = _Search(), tmp_path / "study"
    with pytest.raises(ConfigError, match=r"training\.device = 'cuda': .* finds no CUDA device here; use 'cpu'"):
        _study(folder, monkeypatch, search, 1, load_config(None, {"training.device": "cuda"}))
    assert not search.seen
    assert not folder.exists()


def test_a_database_that_refuses(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is missing")
    url = "postgresql+psycopg://me:geheim@127.0.0.1:1/db"
    with pytest.raises(
        ConfigError, match=r"me:\*\*\*@127.0.0.1:1/db: .*efused.*; start the database, or correct the URL"
    ):
        open_study(BASE, tmp_path, StudyPlan(1, storage=url))


def test_looking_at_a_trial_changes_nothing_and_sees_the_policy_for_the_budgets(tmp_path: Path) -> None:
    """Two epochs, two policies within the budgets: four looks; the second is the integer loss but for rounding."""
    wanted = {
        "model.name": "mlp", "data.limit": 100, "device.profile": "cortex-m4-stm32l4r5-ddq",
        "budgets.latency": "85%", "budgets.flash": "60%",
        "training.float_epochs": 1, "training.joint_epochs": 2, "training.finetune_epochs": 1, "search.points": 2,
        "search.extra_points": 0, "search.relaxed_points": 0, "search.uniform": [[8, 8]], "training.norm_batches": 2,
        "training.batch_size": 16, "training.threads": 1,
    }  # fmt: skip
    base = load_config(None, wanted)
    study = tune.run_study(base, assemble, tmp_path / "study", StudyPlan(1, objective="scalar"))
    (trial,) = study.trials
    assert list(trial.user_attrs["losses"]) == ["joint 1", "joint 2", "p00", "p01"]
    assert list(trial.intermediate_values) == [1, 2, 3, 4]

    problem = assemble(applied(base, trial.params))
    alone = RunDirectory(tmp_path / "alone")
    search(problem, alone)
    front = alone.read_json("front.json")
    assert RunDirectory(tmp_path / "study/trials/0000").read_json("front.json") == front
    losses = {point["name"]: point["val_loss"] for point in front["points"]}
    assert trial.intermediate_values[3] == losses["p00"]
    assert trial.intermediate_values[4] == min(losses["p00"], losses["p01"])
    assert trial.value == losses[front["best"]]

    loaded = alone.load_checkpoint("joint")
    assert loaded is not None
    net = problem.supernet(sets=2)
    net.load_state_dict({k.removeprefix("module."): v for k, v in loaded[0].items() if k.startswith("module.")})
    bits = problem.pricing.most_likely(net.gates.scores(0).numpy(), problem.budgets, [])
    assert bits is not None
    net.set_policy(bits)
    net.reestimate_norms(inputs(problem, base.training.calibration_batches))
    integer = evaluate_policy(problem, net, Policy("now", bits), "validation").loss
    assert trial.intermediate_values[2] == pytest.approx(integer, rel=0.02)


@pytest.mark.parametrize("mode", ["ptq", "supernet"])
def test_gates_on_frozen_weights_are_looked_at_too(tmp_path: Path, mode: str) -> None:
    """Looks were spaced by the epochs of the joint training, however few those of the gates are."""
    wanted = {
        "model.name": "mlp", "data.limit": 100, "budgets.flash": "60%", "training.float_epochs": 1,
        "training.joint_epochs": 16, "training.finetune_epochs": 1, "training.norm_batches": 2,
        "training.batch_size": 16, "training.threads": 1, "search.mode": mode, "search.ptq_images": 32,
        "search.solve_steps": 4 if mode == "ptq" else 10, "search.points": 1, "search.extra_points": 0,
        "search.relaxed_points": 0, "search.uniform": [],
    }  # fmt: skip
    study = tune.run_study(load_config(None, wanted), assemble, tmp_path, StudyPlan(1, objective="scalar"))
    assert list(study.trials[0].user_attrs["losses"]) == ["gates 1", "gates 2", "p00"]


# -- artifacts, queue --------------------------------------------------------------------------------------------------


class _WritingSearch(_Search):
    def __call__(self, problem: Any, record: RunDirectory, progress: Any) -> Any:
        result = super().__call__(problem, record, progress)
        record.write_text("front.json", f"front of {record.path.name}")
        record.write_text("policies/p00.json", "{}")
        return result


def test_fronts_and_policies_hang_on_their_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(tmp_path, monkeypatch, _WritingSearch(), 2)
    for trial in study.trials:
        attached = {m.filename: m.artifact_id for m in get_all_artifact_meta(trial, storage=study._storage)}
        assert attached.keys() == {"front.json", "p00.json"}
        assert (tmp_path / "artifacts" / attached["front.json"]).read_text() == f"front of {trial.number:04d}"


def test_a_worker_killed_after_attaching_leaves_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = _WritingSearch()
    with monkeypatch.context() as patch:
        patch.setattr(tune._Worker, "_attach", _then_interrupt(tune._Worker._attach))
        with pytest.raises(KeyboardInterrupt):
            _study(tmp_path, monkeypatch, search, 1)
    study = _study(tmp_path, monkeypatch, search, 1)
    (trial,) = study.get_trials(states=(TrialState.COMPLETE,))
    assert (
        len(get_all_artifact_meta(trial, storage=study._storage)) == 2 == len(list((tmp_path / "artifacts").iterdir()))
    )


def _then_interrupt(act: Callable[..., None]) -> Callable[..., None]:
    def both(*arguments: Any) -> None:
        act(*arguments)
        raise KeyboardInterrupt

    return both


def _opened(folder: Path) -> optuna.Study:
    return open_study(BASE, folder, StudyPlan(1, sampler="random"))


def _ask(study: optuna.Study) -> optuna.Trial:
    with pytest.warns(UserWarning, match="Heartbeat"):
        return study.ask()


def test_never_more_trials_run_than_are_wanted(tmp_path: Path) -> None:
    """Three machines ask at the same moment for a study that lacks two: the last one gives its trial up."""
    study = _opened(tmp_path)
    queue = Queue(study, tmp_path, 2, 60.0)
    trials = [_ask(study) for _ in range(3)]
    assert [queue._is_surplus(trial.number) for trial in trials] == [False, False, True]
    queue._give_up(trials[2])
    study.tell(trials[0], [1.0, 1.0, 1.0])
    study.tell(trials[1], [1.0, 1.0, 1.0])
    assert queue.take() is None
    assert study.trials[2].user_attrs[REASON] == "not needed: others were enough"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_rule_of_places_never_keeps_too_many(data: st.DataObject) -> None:
    """Any interleaving of asking, checking, dying and finishing on any number of machines, in memory."""
    wanted = data.draw(st.integers(1, 4))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    queue = Queue(study, Path(), wanted, 60.0)
    unchecked: list[int] = []
    kept: list[int] = []
    for action in data.draw(st.lists(st.sampled_from(["ask", "check", "die", "finish"]), max_size=40)):
        if action == "ask":
            unchecked.append(study.ask().number)
        elif action == "check" and unchecked:
            number = unchecked.pop(data.draw(st.integers(0, len(unchecked) - 1)))
            if queue._is_surplus(number):
                study.tell(number, state=TrialState.FAIL)
            else:
                kept.append(number)
        elif kept and action in ("die", "finish"):
            number = kept.pop(data.draw(st.integers(0, len(kept) - 1)))
            put_back(study, number) if action == "die" else study.tell(number, 1.0)
    assert finished(study) <= wanted


def test_trials_of_dead_workers_are_queued_again(tmp_path: Path) -> None:
    study = _opened(tmp_path)
    alive, dead, elsewhere = (_ask(study) for _ in range(3))
    for trial in (alive, dead, elsewhere):
        trial.suggest_float("training.joint_rate", 0.01, 0.1)
        trial.set_user_attr("run", str(tmp_path / f"{trial.number}"))
        trial.set_user_attr("host", "another machine" if trial is elsewhere else tune_queue.HOST)
    with locked(tmp_path / f"{alive.number}"):
        Queue(study, tmp_path, 5, 60.0).recover()
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert study.trials[3].params == dead.params
    assert origin(study.trials[3]) == dead.number


def test_a_trial_whose_worker_died_before_its_first_sign_of_life(tmp_path: Path) -> None:
    study = _opened(tmp_path)
    _ask(study)
    patient, hasty = Queue(study, tmp_path, 5, 60.0), Queue(study, tmp_path, 5, -1.0)
    patient.recover()
    assert study.trials[0].state == TrialState.RUNNING
    hasty.recover()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_given_away_while_its_worker_slept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sleeper's result is not told twice; whoever got the trial finds its files."""

    def lose(number: int) -> None:
        if number == 1:
            put_back(open_study(BASE, tmp_path, StudyPlan(1)), 0)

    search = _Search(lose)
    study = _study(tmp_path, monkeypatch, search, 1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [name for name, _ in search.seen] == ["0000", "0000"]


def test_a_trial_that_waits_in_the_queue_is_held_by_nobody(tmp_path: Path) -> None:
    """Else another worker would take whoever is just about to go on with it for dead."""
    study = _opened(tmp_path)
    trial = _ask(study)
    trial.suggest_float("training.joint_rate", 0.01, 0.1)
    trial.set_user_attr("losses", {"joint 1": [1, 0.5]})
    trial.set_user_attr("host", tune_queue.HOST)
    trial.set_user_attr("run", str(tmp_path / "0000"))
    put_back(study, 0)
    assert study.trials[1].user_attrs == {"losses": {"joint 1": [1, 0.5]}}
    again = _ask(study)
    assert again.number == 1
    Queue(study, tmp_path, 5, 60.0).recover()
    assert study.trials[1].state == TrialState.RUNNING


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("when", ["while it is asked for", "while its place is looked up"])
def test_ctrl_c_before_a_trial_is_run_leaves_none_running(tmp_path, monkeypatch, when):
    """The trial was in the study already, but nobody had it to put it back: it was left to its grace."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'tune.db'}")
    asked = study.ask

    def ask() -> optuna.Trial:
        trial = asked()
        signal.raise_signal(signal.SIGINT)
        trial.suggest_int("a", 1, 9)  # goes on
        return trial

    if when == "while it is asked for":
        monkeypatch.setattr(study, "ask", ask)
    else:
        monkeypatch.setattr(Queue, "_is_surplus", lambda self, number: signal.raise_signal(signal.SIGINT))
    plan = SimpleNamespace(trials=2, heartbeat_s=1.0)
    with pytest.raises(KeyboardInterrupt):
        tune._Worker(study, None, None, tmp_path, plan, Silent()).work()
    assert {trial.state for trial in study.get_trials()} == {TrialState.FAIL, TrialState.WAITING}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_interrupts_are_postponed_once_and_only_where_there_is_a_handler():
    reached = []

    def pressed_twice() -> None:
        with tune_queue.interrupts_postponed():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()
    assert reached == ["the end"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tune_queue.interrupts_postponed():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
