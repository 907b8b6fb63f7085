"""Other budgets and another device from a trained supernet: weights stay, results are complete, misuse is explained."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from ddq_search import stages
from ddq_search.cli.app import app
from ddq_search.cli.assembly import assemble, open_run, posed_again
from ddq_search.cli.runs import _tell_pinned
from ddq_search.config import BudgetConfig, DeviceConfig, SearchConfig, TrainingConfig, load_config
from ddq_search.errors import ConfigError, PolicyError, RunError
from ddq_search.policy import read_policy
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.solve import _OF_BASELINE, solve, trained_supernet, within_trained
from ddq_search.training import Silent

SETTINGS = {
    "model.name": "mlp", "data.name": "digits", "data.limit": 400, "device.profile": "cortex-a53-rpi3-lowbit-neon",
    "budgets.flash": "80%", "training.float_epochs": 1, "training.joint_epochs": 1, "training.finetune_epochs": 1,
    "training.norm_batches": 2, "training.calibration_batches": 1, "training.threads": 1, "search.points": 2,
    "search.relaxed_points": 0, "search.extra_points": 0, "search.uniform": [[8, 8]], "search.solve_steps": 3,
}  # fmt: skip
M7 = "cortex-m7-stm32h743-cmsis-nn"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("solve") / "run"
    config = load_config(None, SETTINGS | {"out": str(path)})
    problem = assemble(config)
    record = RunDirectory(path)
    search(problem, record)
    return problem, RunDirectory(path, problem.fingerprint)


def other(problem, **changes):
    return posed_again(problem, problem.config.model_copy(update=changes))


@pytest.mark.parametrize("device", ["cortex-a53-rpi3-lowbit-neon", M7])
def test_other_budgets_and_devices(trained, tmp_path, device):
    problem = other(trained[0], budgets=BudgetConfig(flash="65%"), device=DeviceConfig(profile=device))
    record = RunDirectory(tmp_path)
    front = solve(problem, record, trained)
    inside = [point for point in front.points if point.within_budgets]
    assert inside
    assert all(problem.pricing.meets(point.policy.bits, problem.budgets) for point in inside)
    for point in inside:
        assert read_policy(tmp_path / "policies" / f"{point.policy.name}.json", problem.space).bits == point.policy.bits
    document = json.loads((tmp_path / "front.json").read_text())
    assert document["device"]["name"] == device
    assert document["float"] == json.loads((trained[1].path / "front.json").read_text())["float"]
    phases = {row["phase"] for row in record.history()}
    assert phases == {"gates", "finetune"}  # neither float nor joint training again


def test_the_supernet_is_taken_over_as_it_is(trained):
    source = trained_supernet(*trained)
    problem = other(trained[0], budgets=BudgetConfig(), device=DeviceConfig(profile=M7))
    net = problem.supernet(sets=3)
    net.adopt(source)
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(net.model.state_dict()[name], tensor)
    for variable, quantizer in zip(problem.space.variables, net.quantizers, strict=True):
        theirs = source.quantizers[source._row[variable.name]]
        for index, bits in enumerate(variable.candidates):
            assert torch.equal(quantizer.log_steps[index], theirs.log_steps[theirs.candidates.index(bits)])
            assert quantizer.grids[index] == theirs.grids[theirs.candidates.index(bits)]


def test_an_untrained_precision_is_named(trained):
    narrow = posed_again(trained[0], load_config(None, SETTINGS | {"space.weight_bits": [4, 8]})).supernet()
    with pytest.raises(PolicyError, match=r"'weights/.*' was not trained at \[2\] bits, only at \[4, 8\]"):
        trained[0].supernet().adopt(narrow)


def test_an_unfinished_search_is_refused(trained, tmp_path):
    problem = other(trained[0], budgets=BudgetConfig(flash="65%"))
    with pytest.raises(RunError, match="holds no finished search"):
        solve(problem, RunDirectory(tmp_path / "b"), (trained[0], RunDirectory(tmp_path / "a", trained[1].fingerprint)))
    assert not (tmp_path / "b").exists()


def test_a_refused_solve_does_not_occupy_its_folder(trained, tmp_path):
    """It left checkpoints, so that neither the corrected command nor --resume was taken."""
    untrained = {"space.weight_bits": [2, 3, 4, 8], "device.profile": "exact-widths"}
    with pytest.raises(PolicyError, match=r"was not trained at \[3\] bits"):
        solved(trained, tmp_path / "a", **untrained)
    assert not (tmp_path / "a").exists()
    command = ["solve", str(trained[1].path), "--flash", "65%", "--out", str(tmp_path / "a")]
    wrong = ["--set", "space.weight_bits=[2,3,4,8]", "--device", "exact-widths"]
    assert isinstance(CliRunner().invoke(app, [*command, *wrong]).exception, PolicyError)
    assert not (tmp_path / "a").exists()
    assert CliRunner().invoke(app, command).exit_code == 0


# -- settings that differ from the search's ---------------------------------------------------------------------------


def solved(trained, path, **changes):
    """Solves with other settings; returns the record, the float baseline's figures and what was noted."""
    config = load_config(trained[1].path / "config.toml", {"budgets.flash": "65%", "out": str(path), **changes})
    told, record = Notes(), RunDirectory(path)
    front = solve(posed_again(trained[0], config), record, trained, told)
    return record, front.document()["float"], told.notes


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_baseline_of_other_epochs_is_that_of_a_search_with_as_many(trained, tmp_path):
    record, found, notes = solved(trained, tmp_path / "solved", **{"training.finetune_epochs": 2})
    epochs = [row["epoch"] for row in record.history() if row["phase"] == "baseline"]
    assert epochs == [0, 1, 2]
    assert any("the float baseline is trained again: training.finetune_epochs differs from" in note for note in notes)
    whole = assemble(load_config(None, SETTINGS | {"search.points": 1, "training.finetune_epochs": 2}))
    assert found == search(whole, RunDirectory(tmp_path / "whole")).document()["float"]
    assert found["epochs"] == 1 + len(epochs)


def test_a_baseline_of_other_settings_is_trained_again(trained, tmp_path):
    changes = {"training.ema_decay": 0.5, "training.batch_size": 32}
    record, _, notes = solved(trained, tmp_path, **changes)
    assert [row["epoch"] for row in record.history() if row["phase"] == "baseline"] == [0, 1]
    assert any("again: training.batch_size, training.ema_decay differ from" in note for note in notes)


def test_a_baseline_of_another_optimizer_is_trained_again(trained, tmp_path):
    """It was taken over silently."""
    record, _, notes = solved(trained, tmp_path, **{"training.optimizer": "adam"})
    assert [row["epoch"] for row in record.history() if row["phase"] == "baseline"] == [0, 1]
    assert any("again: training.optimizer differs from" in note for note in notes)


def test_every_training_setting_either_decides_the_baseline_or_is_known_not_to():
    others = {
        "float_epochs", "float_rate",  # of the float model itself
        "step_rate", "gate_rate", "calibration_batches", "norm_batches", "finetune_shares",  # of policies
        "memory_layout", "threads", "workers", "device", "compile",  # where it is computed
    }  # fmt: skip
    assert {*_OF_BASELINE, *others} == TrainingConfig.model_fields.keys()


def test_a_baseline_stays_where_nothing_is_trained(trained, tmp_path):
    record, found, notes = solved(trained, tmp_path, **{"training.finetune_epochs": 0, "training.batch_size": 32})
    assert found == json.loads((trained[1].path / "front.json").read_text())["float"]
    assert found["epochs"] == 3  # its own
    assert {row["phase"] for row in record.history()} == {"gates"}
    assert not any("baseline" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"data.limit": 300, "model.name": "resnet8"}, "model, data"),
        ({"training.float_epochs": 2}, "training.float_epochs"),
        ({"training.joint_epochs": 2, "search.mode": "supernet"}, "training.joint_epochs, search.mode"),
        ({"search.method": "edmips"}, "search.method"),
        ({"search.weight_quantizers": ["lsq"]}, "search.weight_quantizers"),
    ],
)
def test_what_is_taken_over_cannot_differ(trained, tmp_path, changes, named):
    with pytest.raises(ConfigError, match=rf"^{named}: what belongs to the networks of .* cannot differ"):
        solved(trained, tmp_path / "solved", **changes)
    assert not (tmp_path / "solved").exists()


def test_choosing_by_scores_takes_the_float_model_alone(trained, tmp_path):
    changes = {"search.method": "random", "training.joint_epochs": 2, "search.weight_quantizers": ["lsq"]}
    record, found, _ = solved(trained, tmp_path, **changes)
    assert {row["phase"] for row in record.history()} == {"alone", "baseline"}
    assert found["epochs"] == 4


def test_given_weights_that_were_not_trained_on(tmp_path):
    config = load_config(None, SETTINGS | {"training.float_epochs": 0, "out": str(tmp_path / "run")})
    problem, record = assemble(config), RunDirectory(tmp_path / "run")
    search(problem, record)
    _, found, _ = solved((problem, record), tmp_path / "solved")
    assert found == json.loads((tmp_path / "run" / "front.json").read_text())["float"]


def test_the_command(trained, tmp_path):
    run, runner = str(trained[1].path), CliRunner()
    refused = runner.invoke(app, ["solve", run, "--out", str(tmp_path / "x")])
    assert refused.exit_code == 2 or "nothing to solve" in str(refused.exception)
    result = runner.invoke(app, ["solve", run, "--flash", "60%", "--out", str(tmp_path / "y")])
    assert result.exit_code == 0, result.output
    config = load_config(tmp_path / "y" / "config.toml", {})
    assert config.budgets == BudgetConfig(flash="60%")
    quick = runner.invoke(app, ["solve", run, "--flash", "60%", "--quick", "--out", str(tmp_path / "z")])
    assert quick.exit_code == 0, quick.output
    history = [json.loads(line) for line in (tmp_path / "z" / "history.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in history} == {"gates"}
    (point,) = json.loads((tmp_path / "z" / "front.json").read_text())["points"]
    assert point["within_budgets"]


def test_a_device_that_offers_more_is_solved_with_what_was_trained(tmp_path):
    """It was refused, tensor by tensor, until every one was pinned by hand."""
    run, out, runner = tmp_path / "run", tmp_path / "out", CliRunner()
    settings = SETTINGS | {"device.profile": M7, "budgets.flash": "90%", "out": str(run)}
    search(problem := assemble(load_config(None, settings)), RunDirectory(run))
    command = ["solve", str(run), "--device", "cortex-a53-rpi3-lowbit-neon", "--flash", "70%", "--out", str(out)]
    with pytest.raises(PolicyError, match="was not trained at"):  # who asks for candidates gets these or none
        runner.invoke(app, [*command, "--set", "space.weight_bits=[2,4,8]"], catch_exceptions=False)
    result = runner.invoke(app, command, catch_exceptions=False)
    assert "only at 4 or 8 bits, as trained: weights/" in result.output
    solved_problem, _ = open_run(out)
    assert solved_problem.device.name == "cortex-a53-rpi3-lowbit-neon"
    for variable in solved_problem.space.variables:
        assert set(variable.candidates) <= set(problem.space[variable.name].candidates)
    assert json.loads((out / "front.json").read_text())["points"]


def test_a_pin_that_is_narrowed_is_told(capsys):
    _tell_pinned({"weights/conv1": [4], "weights/conv2": [4, 8], "fc": 8}, {"weights/conv1": [2, 4], "fc": 8})
    assert capsys.readouterr().out.splitlines() == [
        "only at 4 bits, as trained: weights/conv1",
        "only at 4 or 8 bits, as trained: weights/conv2",
    ]


def test_what_was_trained_pins_nothing_where_it_is_all_there_is(trained):
    problem = trained[0]
    assert within_trained(problem.config, problem.device, problem) is problem.config
    narrow = posed_again(problem, load_config(None, SETTINGS | {"space.weight_bits": [4, 8]}))
    pinned = within_trained(problem.config, problem.device, narrow).space.pins
    assert pinned == {v.name: [4, 8] for v in problem.space.variables if v.role == "weights"}
    by_scores = problem.config.model_copy(update={"search": SearchConfig(method="greedy")})
    assert within_trained(by_scores, problem.device, narrow) is by_scores  # trains what it chooses
    untrained = posed_again(problem, load_config(None, SETTINGS | {"space.weight_bits": [4], "budgets.flash": None}))
    config = load_config(None, SETTINGS | {"space.weight_bits": [2, 8]})
    assert within_trained(config, problem.device, untrained) is config  # `solve` says which


def test_threads_are_those_of_the_new_configuration(trained):
    threads = torch.get_num_threads()
    try:
        posed_again(trained[0], load_config(None, {**SETTINGS, "training.threads": threads + 1}))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_the_baseline_is_measured_once(trained, tmp_path, monkeypatch):
    """Its figures come with it; those of other weights are measured anew."""
    asked = []
    real = stages.measure_as_is
    monkeypatch.setattr(stages, "measure_as_is", lambda *given: asked.append(given[2]) or real(*given))
    config = load_config(None, {**SETTINGS, "budgets.flash": "60%", "training.finetune_epochs": 0})
    front = solve(posed_again(trained[0], config), RunDirectory(tmp_path / "a"), trained)
    assert not asked
    theirs = json.loads((trained[1].path / "front.json").read_text())["float"]
    assert (front.float_validation.score, front.float_test.score) == (theirs["val_score"], theirs["test_score"])
    known = json.loads((trained[1].path / "baseline.json").read_text())
    other = RunDirectory(tmp_path / "b")
    other.write_json("baseline.json", {**known, "weights": "others"})
    again = solve(posed_again(trained[0], config), other, trained)
    assert asked == ["validation", "test"]
    assert again.float_test == front.float_test
