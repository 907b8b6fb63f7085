"""CMSIS-NN closed forms: held-out errors, shipped coefficients, scratch as counted, fits recovered."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.errors import CostError
from hardware_models.cmsis_nn import FORMS, Form, closed_form_checks, counted_layers, fit_form
from hardware_models.fitting import fit_relative, leave_one_out
from hardware_models.pricing import Pricer
from hardware_models.profile import DeviceProfile, list_profiles, load_profile
from hardware_models.profile_file import profile_toml, write_profile

PROFILES = {
    "M4": ("cortex-m4-stm32l4r5-cmsis-nn",),
    "M7": ("cortex-m7-stm32h743-cmsis-nn", "cortex-m7-stm32f746-cmsis-nn"),
    "M33": ("cortex-m33-ra6m4-cmsis-nn",),
    "M55": ("cortex-m55-an547-cmsis-nn",),
}
BAR_PCT = {"M4": 7.0, "M7": 7.0, "M33": 7.0, "M55": 12.0}
EVERY_FORM = [pytest.param(core, form, id=f"{core}-{form.name}") for core, forms in FORMS.items() for form in forms]


@pytest.mark.parametrize(("core", "form"), EVERY_FORM)
def test_held_out_error_within_the_bar_and_coefficients_as_shipped(core: str, form: Form) -> None:
    fitted = fit_form(core, form)
    assert fitted.error_pct <= BAR_PCT[core]
    assert len(fitted.layers) >= 2 * len(form.terms)
    assert len({layer.shape for layer in fitted.layers}) == len(fitted.layers)
    for name in PROFILES[core]:
        kernel = next(kernel for kernel in load_profile(name).engine.kernels if kernel.name == form.name)
        assert (kernel.tile_channels, kernel.k_multiple) == (form.tile_channels, form.k_multiple)
        assert list(kernel.terms) == list(form.terms)
        assert list(kernel.terms.values()) == pytest.approx(list(fitted.coefficients), rel=1e-3)
        assert f"error {fitted.error_pct:.1f} %, worst {fitted.worst_pct:.1f} %" in kernel.source


@pytest.mark.parametrize("core", FORMS)
def test_scratch_is_what_the_library_asked_for(core: str) -> None:
    pricer = Pricer(load_profile(PROFILES[core][0]).engine, 1.0)
    for layer in counted_layers(core):
        _, scratch = pricer.layer(layer.name, layer.shape, (layer.weight_bits,), (8,))
        if core == "M55" and layer.shape.layer_class == "linear" and layer.weight_bits == 4:
            assert scratch.item() == layer.scratch_bytes == 0
        else:
            assert scratch.item() == layer.scratch_bytes, layer


@pytest.mark.parametrize("core", FORMS)
def test_four_bit_weights_take_more_instructions_in_every_convolution(core: str) -> None:
    counted = {(layer.shape, layer.weight_bits): layer.instructions for layer in counted_layers(core)}
    pricer = Pricer(load_profile(PROFILES[core][0]).engine, 1.0)
    for (shape, bits), instructions in counted.items():
        if bits == 8 and shape.layer_class != "linear":
            seconds, _ = pricer.layer("layer", shape, (4, 8), (8,))
            assert counted[shape, 4] > instructions
            assert seconds[0, 0] > seconds[1, 0]


@pytest.mark.parametrize("core", FORMS)
def test_checks_hold_every_counted_layer_out(core: str) -> None:
    for name in PROFILES[core]:
        checks = closed_form_checks(load_profile(name))
        assert [check.error_pct for check in checks] == pytest.approx(
            [fit_form(core, form).error_pct for form in FORMS[core]]
        )
        assert all(check.error_pct <= check.bar_pct == BAR_PCT[core] for check in checks)  # type: ignore[operator]
    assert closed_form_checks(load_profile("cortex-a53-rpi3-lowbit-neon")) == []


def test_layers_of_the_networks() -> None:
    layers = {layer.name: layer for layer in counted_layers("M4") if layer.weight_bits == 8}
    assert len(layers) == 39  # 58 weighted operations, 20 of which repeat a geometry, and one case of its own
    first = layers["kws 0"].shape  # 49x10x1 → 25x5x64, 10x4 window, stride 2, "same"
    assert (first.kernel, first.stride, first.padding) == ((10, 4), (2, 2), (4, 1))
    assert (first.row_length, first.inside_taps) == (40, (6 + 8 + 20 * 10 + 9 + 7 + 5) * (3 + 3 * 4 + 3))
    strided = layers["vww 0"].shape  # stride 2 on 96x96 pads at the end only
    assert (strided.padding, strided.border_pixels) == ((0, 0), 48 + 47)


def test_instructions_of_one_layer_by_hand() -> None:
    """ResNet-8's last convolution on M4: 64 positions, K = 576, 64 channels, 3 pieces per window."""
    layer = next(layer for layer in counted_layers("M4") if layer.name == "ic 9" and layer.weight_bits == 8)
    expected = 1.623 * 2359296 + 46.01 * 4096 + 2.611 * 64 * 576 + 176.3 * 64 * 3
    assert expected == pytest.approx(layer.instructions, rel=0.01)
    profile = load_profile(PROFILES["M4"][0])
    seconds, _ = Pricer(profile.engine, 1.0).layer(layer.name, layer.shape, (8,), (8,))
    weights = 64 * 576 / profile.engine.weight_bandwidth_bytes_per_s.value  # type: ignore[union-attr]
    assert seconds.item() == pytest.approx(expected * 1.545 + weights, rel=1e-3)


@given(st.lists(st.floats(0, 100), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_exact_samples_are_recovered(coefficients: list[float], seed: int) -> None:
    counts = np.random.default_rng(seed).uniform(1, 1000, size=(8, 3))
    target = counts @ np.array(coefficients) + 1e-9
    assert fit_relative(counts, target) @ np.ones(3) == pytest.approx(sum(coefficients), rel=1e-6, abs=1e-6)


def test_leave_one_out_by_hand() -> None:
    """One term: the others' relative least squares is Σr / Σr², with r = count / target."""
    counts, target = np.array([[1.0], [2.0], [4.0]]), np.array([2.0, 5.0, 8.0])
    errors = []
    for left in range(3):
        ratios = [c[0] / t for i, (c, t) in enumerate(zip(counts, target, strict=True)) if i != left]
        coefficient = sum(ratios) / sum(ratio**2 for ratio in ratios)
        errors.append(coefficient * counts[left, 0] / target[left] - 1)
    assert leave_one_out(counts, target) == pytest.approx(errors)


def test_a_term_that_no_layer_has_stays_zero() -> None:
    counts = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert fit_relative(counts, np.array([3.0, 6.0])) == pytest.approx([3.0, 0.0])


@pytest.mark.parametrize("name", list_profiles())
def test_profiles_survive_writing(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    write_profile(profile, tmp_path / "again.toml")
    assert load_profile(tmp_path / "again.toml") == profile
    assert DeviceProfile.model_validate(tomllib.loads(profile_toml(profile))) == profile


def test_a_folder_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(CostError, match=r"cannot write .*absent/mine\.toml"):
        write_profile(load_profile(PROFILES["M4"][0]), tmp_path / "absent" / "mine.toml")


def test_boards_without_published_figures_are_uncalibrated() -> None:
    status = {name: load_profile(name).calibration for names in PROFILES.values() for name in names}
    uncalibrated = {name for name, calibration in status.items() if calibration.status == "uncalibrated"}
    assert uncalibrated == {"cortex-m7-stm32f746-cmsis-nn", "cortex-m55-an547-cmsis-nn"}
    assert all(status[name].held_out_error_pct is None for name in uncalibrated)
