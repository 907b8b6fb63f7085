"""Other budgets and another device from a trained supernet: weights stay, results are complete, misuse is explained."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from ddq_search.cli.app import app
from ddq_search.cli.assembly import assemble, posed_again
from ddq_search.config import BudgetConfig, DeviceConfig, load_config
from ddq_search.errors import PolicyError, RunError
from ddq_search.policy import read_policy
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.solve import solve, trained_supernet

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


def test_threads_are_those_of_the_new_configuration(trained):
    threads = torch.get_num_threads()
    try:
        posed_again(trained[0], load_config(None, {**SETTINGS, "training.threads": threads + 1}))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
