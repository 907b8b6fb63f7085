"""Device profiles: what is shipped is complete and sourced; what is broken says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddq_search.arithmetic import ARITHMETICS
from ddq_search.errors import CostError
from hardware_models import cost_model, list_profiles, load_profile
from hardware_models.engine import Figure
from hardware_models.profile import PROFILES
from hardware_models.validation import m4_networks, m7_layers

A53, M7 = "cortex-a53-rpi3-lowbit-neon", "cortex-m7-stm32h743-cmsis-nn"


def broken(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """Writes a copy of a shipped profile with one change."""
    text = (PROFILES / f"{name}.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_shipped_profiles() -> None:
    assert {A53, M7} <= set(list_profiles())


@pytest.mark.parametrize("name", list_profiles())
def test_every_profile_is_named_like_its_file_and_sourced(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.arithmetic in ARITHMETICS
    model = cost_model(name)
    assert model.name == name
    assert model.calibration.startswith(("calibrated: ", "uncalibrated: "))
    assert all(figure.source and figure.kind for figure in figures(profile))
    assert "\n" not in model.calibration


def figures(node: object) -> list[Figure]:
    if isinstance(node, Figure):
        return [node]
    if isinstance(node, dict):
        return [figure for value in node.values() for figure in figures(value)]
    if hasattr(type(node), "model_fields"):
        return [figure for key in type(node).model_fields for figure in figures(getattr(node, key))]
    return []


def test_unknown_device_names_the_closest() -> None:
    with pytest.raises(CostError, match=r"cortex-a53-rpi3-neon.*did you mean 'cortex-a53-rpi3-lowbit-neon'"):
        load_profile("cortex-a53-rpi3-neon")
    with pytest.raises(CostError, match=r"known: .*cortex-m7"):
        load_profile("../profiles/x")


def test_a_users_file_has_the_same_standing(tmp_path: Path) -> None:
    path = broken(tmp_path, M7, f'name = "{M7}"', 'name = "mine"')
    assert cost_model(path).name == cost_model(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (M7, "[calibration]\n", "[calibration]\ncolour = 1\n", r"calibration\.colour: Extra inputs"),
        (M7, "alignment_bytes = 8\n", "", r"memory\.alignment_bytes: Field required"),
        (M7, "value = 1.052", "value = 0", r"cycles_per_unit\.value: .*greater than 0"),
        (M7, "value = 1.052", "value = nan", r"cycles_per_unit\.value"),
        (M7, 'kind = "published"', 'kind = "guessed"', r"clock_hz\.kind"),
        (M7, "[operations.mul]", "[operations.softmax]", r"missing \['mul'\], unknown \['softmax'\]"),
        (M7, "conv = [4, 8]", "conv = [2, 4, 8]", "none executes conv layers .*2-bit weights"),
        (M7, "activations = [8]", "activations = [4, 8]", "4-bit activations, which are legal"),
        (M7, "terms = { macs =", "terms = { mac =", r"kernels\.1\.terms: .*unknown terms \['mac'\]"),
        (M7, 'runtime_key = "cmsis-nn"', 'runtime_key = "ddq-c"', "kernel_family goes with"),
        (M7, "depthwise = [4, 8]\n", "", r"legal: .*weights lacks depthwise"),
        (A53, 'status = "uncalibrated"', 'status = "calibrated"', "held-out error"),
        (A53, "activation_bits = 8", "activation_bits = 3", r"kernels\.0\.activation_bits"),
        (M7, "activation_bits = 8\n", "activation_bits = 8\nblock = 64\n", "block and the term 'blocks' come together"),
        (A53, "[engine.pack]\n4 =", "[engine.pack]\n3 =", "both 2 and 4 bits"),
        (A53, 'arithmetic = "single"', 'arithmetic = "double"', "arithmetic"),
    ],
)
def test_a_broken_profile_names_file_and_field(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(CostError, match=message) as caught:
        load_profile(broken(tmp_path, name, old, new))
    assert "mine.toml" in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CostError, match=r"cannot read .*absent.toml"):
        load_profile(tmp_path / "absent.toml")
    path = tmp_path / "x.toml"
    path.write_text("name = ")
    with pytest.raises(CostError, match=r"x.toml is not TOML"):
        load_profile(path)


def test_stated_errors_are_the_ones_measured() -> None:
    m7, m4 = load_profile(M7), load_profile("cortex-m4-stm32l4r5-cmsis-nn")
    assert m7.calibration.held_out_error_pct == pytest.approx(m7_layers().error_pct, abs=0.1)
    assert m4.calibration.held_out_error_pct == pytest.approx(m4_networks().error_pct, abs=0.1)
    assert load_profile(A53).calibration.status == "uncalibrated"
