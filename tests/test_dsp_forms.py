"""Closed forms of the Cortex-M DSP kernels: terms by hand, every counted layer, counts that still hold."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ddq_search.export.c.dsp import KERNELS
from ddq_search.export.c.targets import OPTIMISATION, TARGETS, compiler_version, missing
from ddq_search.export.c.trials import Runner, Trial
from ddq_search.layer_shape import LayerShape
from hardware_models.terms import TERMS

CORES = ("cortex-m4", "cortex-m7", "cortex-m33")
NETWORK_LAYERS, ANY_LAYER = 0.07, 0.08


@pytest.fixture(scope="module")
def fit(repository: Path) -> ModuleType:
    sys.path.insert(0, str(repository / "benchmarks" / "kernels"))
    try:
        importlib.import_module("dsp_forms")
        return importlib.import_module("fit")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def forms(fit: ModuleType) -> ModuleType:
    return importlib.import_module("dsp_forms")


@pytest.fixture(scope="module")
def fits(fit: ModuleType, forms: ModuleType) -> list[Any]:
    files = (forms.COUNTS, forms.MORE_COUNTS)
    calls = [call for name in files for call in fit.read(fit.MEASUREMENTS / name, "cortex-m4")]
    return [fit.fitted(form, bits, calls, {**TERMS, **forms.TERMS}) for form in forms.FORMS for bits in (8, 4, 2)]


def counted(fit: ModuleType, forms: ModuleType, shape: LayerShape, **geometry: int) -> dict[str, float]:
    kernel = fit.Geometry(**{"weight_bits": 8, "activation_bits": 8, "tile_pixels": 2, "tile_channels": 2, **geometry})
    return {name: term(shape, kernel) for name, term in forms.TERMS.items() if term(shape, kernel)}


def test_terms_of_a_convolution_by_hand(fit: ModuleType, forms: ModuleType) -> None:
    """15 windows (7 pairs and one), 5 channels (2 pairs and one), K = 36 (9 quads); 3 windows lie inside."""
    shape = LayerShape("conv", (3, 5, 4), (3, 5, 5), (3, 3), padding=(1, 1))
    found = counted(fit, forms, shape, k_multiple=8)
    tiles = {"passes": 8, "full_tiles": 14, "full_steps": 56, "full_rests": 14, "odd_tiles": 2, "odd_steps": 8}
    lone = {"odd_rests": 2, "lone_tiles": 7, "lone_quads": 63, "lone_odd_tiles": 1, "lone_odd_quads": 9}
    gather = {"gathered_windows": 15, "gathered_runs": 9, "border_runs": 108}
    assert found.items() >= (tiles | lone | gather).items()
    assert not {"windows", "copied_windows", "searched_runs"} & set(found)


def test_terms_of_columns_read_in_place_and_copied_by_hand(fit: ModuleType, forms: ModuleType) -> None:
    pointwise = LayerShape("pointwise", (3, 5, 6), (3, 5, 4))
    assert counted(fit, forms, pointwise, k_multiple=4).items() >= {"windows": 15, "full_rests": 14}.items()
    packed = counted(fit, forms, pointwise, k_multiple=4, activation_bits=4)
    assert packed.items() >= {"copied_windows": 15, "searched_runs": 15, "searched_codes": 90}.items()
    first = LayerShape("conv", (4, 4, 3), (4, 4, 4), (3, 3), padding=(1, 1))
    found = counted(fit, forms, first, k_multiple=4)
    assert (
        found.items() >= {"copied_runs": 12, "copied_codes": 108, "searched_runs": 108, "searched_codes": 324}.items()
    )


def test_terms_of_a_depthwise_layer_by_hand(fit: ModuleType, forms: ModuleType) -> None:
    """9 channels are two blocks and one channel; of 3 x 5 outputs the outer columns and rows leave the image."""
    shape = LayerShape("depthwise", (3, 5, 9), (3, 5, 9), (3, 3), padding=(1, 1), groups=9)
    found = counted(fit, forms, shape, tile_pixels=1, tile_channels=4, k_multiple=1)
    blocks = {"channel_blocks": 2, "block_taps": 18, "block_rows": 6, "block_windows": 30, "block_window_rows": 90}
    assert found.items() >= (blocks | {"block_macs": 270, "edges": 12, "edge_macs": 108, "border_rows": 20}).items()
    packed = counted(fit, forms, shape, tile_pixels=1, tile_channels=4, k_multiple=1, activation_bits=4)
    assert packed.items() >= {"spread_windows": 30, "spread_macs": 270}.items()
    assert "block_windows" not in packed


def test_every_counted_layer_is_predicted(fits: list[Any], forms: ModuleType) -> None:
    for fitted in fits:
        assert (fitted.coefficients >= 0).all()
        for call, error in zip(fitted.calls, fitted.errors, strict=True):
            assert abs(error) < (ANY_LAYER if call.case in forms.FURTHER else NETWORK_LAYERS), (call, error)
    assert sum(len(fitted.calls) for fitted in fits) > 700


@pytest.mark.parametrize("core", CORES)
def test_the_recorded_counts_are_those_of_the_kernels(core: str, repository: Path, tmp_path: Path) -> None:
    target = TARGETS[core]
    if missing(target) or compiler_version(target) != "arm-none-eabi-gcc 12.2.1":
        pytest.skip(missing(target) or "the counts are those of arm-none-eabi-gcc 12.2.1")
    with (repository / "hardware_models/measurements/own_kernels_cortex_m.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["core"] == core]
    assert {row["flags"] for row in rows} == {" ".join((*target.flags, *OPTIMISATION))}
    chosen = [
        row
        for row in rows
        if row["case"] in ("ic_c5_3x3_8x8_64_64", "dw_3x3_256", "fc_64_10", "kws_c1_10x4s2_49x10_1_64")
    ]
    kernels = {kernel.name: kernel for kernel in KERNELS}
    trials = []
    for row in chosen:
        number = {name: int(text) for name, text in row.items() if text.isdigit()}
        pairs = {name: (number[f"{name}_h"], number[f"{name}_w"]) for name in ("kernel", "stride", "dilation")}
        shape = LayerShape(
            row["layer_class"], (number["in_h"], number["in_w"], number["in_c"]),
            (number["out_h"], number["out_w"], number["out_c"]), padding=(number["pad_top"], number["pad_left"]),
            groups=number["groups"], **pairs,
        )  # fmt: skip
        widths = (number["weight_bits"], number["input_bits"], number["output_bits"])
        trials.append(Trial(kernels[row["kernel"]], shape, *widths, row["rounding"]))
    found = Runner(target, KERNELS, tmp_path, count=True).run(trials)
    assert found == [int(row["instructions"]) for row in chosen]
