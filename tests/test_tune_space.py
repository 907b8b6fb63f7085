"""Search spaces of the outer loop: files, conditions, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import FixedTrial

from ddq_search.config import load_config
from ddq_search.errors import ConfigError
from ddq_search.tune_space import TuneSpace, applied, default_space, load_space

BASE = load_config(None, {"seed": 3})
CONDITIONAL = """
[parameters."training.schedule"]
type = "categorical"
choices = ["cosine", "step"]

[parameters."training.joint_epochs"]
type = "int"
low = 10
high = 40
step = 10

[parameters."training.ema_decay"]
type = "float"
low = 0.9
high = 0.99
when = { key = "training.schedule", one_of = ["cosine"] }

[parameters."training.joint_rate"]
type = "float"
low = 0.01
high = 0.1
log = true
when = { key = "training.joint_epochs", at_least = 20, at_most = 30 }

[parameters."space.weight_bits"]
type = "categorical"
choices = [[4, 8], [2, 4, 8]]
"""


def _load(folder: Path, text: str) -> TuneSpace:
    path = folder / "space.toml"
    path.write_text(text)
    return load_space(path, BASE)


def test_the_default_space_lies_around_the_configuration() -> None:
    space = default_space(BASE)
    rate = space.parameters["training.joint_rate"]
    assert rate.type == "float"
    assert (rate.low, rate.high) == pytest.approx((0.009, 0.09))
    assert not space.conditional


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("cosine", 20, {"training.ema_decay", "training.joint_rate"}),
        ("cosine", 10, {"training.ema_decay"}),
        ("step", 30, {"training.joint_rate"}),
        ("step", 40, set()),
    ],
)
def test_conditions(tmp_path: Path, schedule: str, epochs: int, expected: set[str]) -> None:
    space = _load(tmp_path, CONDITIONAL)
    assert space.conditional
    always = {"training.schedule": schedule, "training.joint_epochs": epochs, "space.weight_bits": "[4, 8]"}
    chosen = space.choose(FixedTrial({**always, "training.ema_decay": 0.95, "training.joint_rate": 0.05}))  # type: ignore[arg-type]
    assert chosen.keys() == always.keys() | expected
    config = applied(BASE, chosen)
    assert config.training.schedule == schedule
    assert config.space.weight_bits == (4, 8)
    assert config.training.ema_decay == (0.95 if "training.ema_decay" in expected else BASE.training.ema_decay)


def test_a_condition_on_a_key_that_was_not_chosen_does_not_hold(tmp_path: Path) -> None:
    more = '\n[parameters."training.step_rate"]\ntype = "float"\nlow = 0.01\nhigh = 0.1\n'
    chained = CONDITIONAL + more + 'when = { key = "training.ema_decay", at_least = 0.0 }\n'
    space = _load(tmp_path, chained)
    values = {"training.schedule": "step", "training.joint_epochs": 10, "space.weight_bits": "[4, 8]"}
    assert "training.step_rate" not in space.choose(FixedTrial(values))  # type: ignore[arg-type]


def test_a_sampler_explores_both_branches(tmp_path: Path) -> None:
    space = _load(tmp_path, CONDITIONAL)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        seen.add(frozenset(space.choose(trial)) - {"space.weight_bits"})
        study.tell(trial, 0.0)
    assert len(seen) == 4


def _one(key: str, rest: str) -> str:
    return f'[parameters."{key}"]\n{rest}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_one("training.joint_rat", 'type = "float"\nlow = 1\nhigh = 2'), "unknown configuration key"),
        (_one("data.name", 'type = "categorical"\nchoices = ["digits"]'), "'data.name' cannot be varied; what can"),
        (_one("training.joint_rate", 'type = "float"\nlow = 0\nhigh = 2'), "training.joint_rate: Input should be gr"),
        (_one("training.joint_rate", 'type = "float"\nlow = 2\nhigh = 1'), "low 2.0 is above high 1.0"),
        (_one("training.joint_rate", 'type = "float"\nlow = 0\nhigh = 1\nlog = true'), "starts above 0"),
        (_one("training.joint_rate", 'type = "real"\nlow = 0\nhigh = 1'), "parameters.training.joint_rate"),
        (_one("training.joint_rate", 'type = "float"\nlow = 1\nhigh = 2\nhi = 1'), "hi: Extra inputs"),
        (_one("training.schedule", 'type = "categorical"\nchoices = ["cosine", "linear"]'), "training.schedule: Input"),
        (_one("search.penalty", 'type = "float"\nlow = 1\nhigh = 2\nwhen = { key = "x", at_least = 1 }'), "not varied"),
        (_one("search.penalty", 'type = "float"\nlow = 1\nhigh = 2\nwhen = { key = "x" }'), "needs one_of"),
        (
            CONDITIONAL + _one("search.penalty", 'type = "float"\nlow = 1\nhigh = 2\n'
            'when = { key = "training.schedule", at_least = 1 }'),
            "is a choice; use one_of",
        ),
        (
            CONDITIONAL + _one("search.penalty", 'type = "float"\nlow = 1\nhigh = 2\n'
            'when = { key = "training.schedule", one_of = ["constant"] }'),
            "never has",
        ),
        ("", "parameters: Field required"),
        ("[[", "is not TOML"),
    ],
)  # fmt: skip
def test_spaces_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, text)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the search space"):
        load_space(tmp_path / "none.toml", BASE)
