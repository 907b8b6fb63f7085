"""Configuration: unknown keys and bad values are named; TOML round trip; fingerprint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.config import RunConfig, load_config
from ddq_search.cost import FLASH, LATENCY
from ddq_search.errors import ConfigError


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_defaults_and_overrides(tmp_path):
    config = load_config(written(tmp_path, "seed = 3\n[training]\nbatch_size = 16\n"), {"training.batch_size": 32})
    assert (config.seed, config.training.batch_size) == (3, 32)
    assert load_config(None, {}) == RunConfig()
    pins = load_config(None, {"space.pins.layer1.0.conv*": 8, "space.pins.fc": [4, 8]}).space.pins
    assert pins == {"layer1.0.conv*": 8, "fc": [4, 8]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", r"unknown configuration key 'sed' in .*run\.toml; known here: seed, out, model"),
        ("[training]\nepochs = 3", "unknown configuration key 'training.epochs'.*float_epochs"),
        ("[trainig]\nfloat_epochs = 3", "unknown configuration key 'trainig'"),
        ("[training]\njoint_epochs = 0", "'training.joint_epochs'.*greater than 0, got 0"),
        ("[training]\njoint_rate = -1.0", "'training.joint_rate'.*got -1.0"),
        ("[training]\njoint_rate = nan", "'training.joint_rate'"),
        ("[training]\nmemory_layout = 'nhwc'", "'training.memory_layout'.*got 'nhwc'"),
        ("[training]\ndistillation = 1.5", "'training.distillation'"),
        ("[data]\nvalidation_fraction = 1.0", "'data.validation_fraction'"),
        ("[space]\nweight_bits = [1, 4]", r"'space.weight_bits'.*bitwidths must be 2 to 8, got \[1, 4\]"),
        ("[space]\nactivation_bits = []", "'space.activation_bits'"),
        ("[search]\ngradient_share = 0", "'search.gradient_share'"),
        ("[search]\ngate_start = 1.0", "'search.gate_start'"),
        ("[search]\nmethod = 'edmips'\ngates = 'thresholded'", "gates belong to method 'ddq', not to 'edmips'"),
        ("[search]\nmethod = 'fracbits'\ncoldest = 0.5", "a temperature belongs to 'ddq', 'edmips' and 'dqss'"),
        ("[search]\ncoldest = 0.5\nmode = 'supernet'", "only sampled gates of mode 'joint'"),
        ("[search]\ncoldest = 0.5\ngates = 'thresholded'", "only sampled gates of mode 'joint'"),
        ("[search]\nmethod = 'ilp'\nconstraint = 'squared-gap'", "method 'ilp' has no penalty"),
        ("[search]\nconstraint = 'hinge'", "'search.constraint'.*got 'hinge'"),
        ("[search]\nbaselines = 'foo'", "baselines' .*expected a list of lsq-uniform, random, .*, rusci, got 'foo'$"),
        ("[search]\nbaselines = ['foo']", "'search.baselines.0'.*'lsq-uniform', 'random', .*'rusci', got 'foo'$"),
        ("[search]\nweight_quantizers = 'lsq'", "'search.weight_quantizers'.*expected a list, got 'lsq'$"),
        ("[space]\nweight_bits = 8", "'space.weight_bits'.*expected a list, got 8$"),
        (
            "[search]\nmode = 'supernet'\nmethod = 'dq'",
            r"^configuration key 'search' in .*run\.toml: mode 'supernet' belongs to method 'ddq', not to 'dq'$",
        ),
        ("[budgets]\nlatency = 'fast'", "budget for latency: 'fast' is neither"),
        ("[budgets]\nflash = -3", "budget for flash: '?-3"),
        ("seed = 'x'", "'seed'.*got 'x'"),
        ("seed = ", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, text), {})


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read configuration .*nothing\.toml: No such file"):
        load_config(tmp_path / "nothing.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "binary.toml", {})


def test_an_override_below_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'training' must be a table"):
        load_config(written(tmp_path, "training = 3"), {"training.batch_size": 3})


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sets(st.sampled_from([2, 3, 4, 8]), min_size=1),
    rate=st.floats(1e-8, 10.0),
    latency=st.none() | st.sampled_from(["80%", "1.5 ms", 2.5]),
    pins=st.dictionaries(st.text(min_size=1, max_size=12), st.sampled_from([4, [4, 8]]), max_size=3),
    out=st.text(st.characters(blacklist_categories=["Cs"]), max_size=10),
)
def test_toml_round_trip(tmp_path_factory, seed, bits, rate, latency, pins, out):
    config = RunConfig.model_validate({
        "seed": seed, "out": out, "space": {"weight_bits": list(bits), "pins": pins}, "training": {"joint_rate": rate},
        "budgets": {"latency": latency},
    })  # fmt: skip
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    again = load_config(path, {})
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_a_correction_does_not_go_with_scaled_gradients():
    settings = {"quantizers.correction": 0.1, "training.precision": "fp16"}
    with pytest.raises(ConfigError, match=r"^quantizers\.correction adds to gradients.* take bf16 or float32$"):
        load_config(None, settings)
    assert load_config(None, settings | {"training.precision": "bf16"}).quantizers.correction == 0.1


def test_fingerprint_depends_on_everything_but_the_place():
    base = RunConfig()
    assert base.fingerprint() == RunConfig(out="elsewhere").fingerprint()
    assert base.fingerprint() != RunConfig(seed=1).fingerprint()
    assert base.fingerprint() != base.fingerprint("other model")
    changed = load_config(None, {"training.joint_rate": 0.5})
    assert base.fingerprint() != changed.fingerprint()


def test_candidates_are_sorted_and_budgets_parsed():
    config = load_config(None, {"space.weight_bits": [8, 2, 8], "budgets.latency": "80 %", "budgets.flash": 40})
    assert config.space.weight_bits == (2, 8)
    assert [(w.cost, w.value, w.relative) for w in config.budgets.wishes()] == [
        (LATENCY, pytest.approx(0.8), True), (FLASH, 40 * 1024, False),
    ]  # fmt: skip
