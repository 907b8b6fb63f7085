"""Closed forms of the Helium kernels: terms by hand, every counted layer within 10 percent, layers never fitted."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ddq_search.export.c.helium import KERNELS
from ddq_search.export.c.targets import TARGETS, compiler_version, missing
from ddq_search.export.c.trials import Runner, Trial
from ddq_search.layer_shape import LayerShape
from hardware_models.terms import TERMS

CORE = "cortex-m55-clang"
M55 = TARGETS[CORE]
LARGEST_ERROR = 0.10


@pytest.fixture(scope="module")
def fit(repository: Path) -> ModuleType:
    sys.path.insert(0, str(repository / "benchmarks" / "kernels"))
    try:
        importlib.import_module("helium_forms")
        return importlib.import_module("fit")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def forms(fit: ModuleType) -> ModuleType:
    return importlib.import_module("helium_forms")


@pytest.fixture(scope="module")
def fits(fit: ModuleType, forms: ModuleType) -> dict[tuple[str, int], Any]:
    calls = [call for name in (forms.COUNTS, forms.MORE_COUNTS) for call in fit.read(fit.MEASUREMENTS / name, CORE)]
    return {
        (form.name, bits): fit.fitted(form, bits, calls, {**TERMS, **forms.TERMS})
        for form in forms.FORMS
        for bits in (8, 4, 2)
    }


def test_terms_by_hand(fit: ModuleType, forms: ModuleType) -> None:
    """10 windows (3 tiles of 3, 1 left over), 5 channels, K = 9 * 8 = 72: one block of 64 two-bit codes and a half."""
    shape = LayerShape("conv", (2, 5, 8), (2, 5, 5), (3, 3), padding=(1, 1))
    found = {name: term(shape, fit.Geometry(2, 2, 3, 2, 64)) for name, term in forms.TERMS.items()}
    assert found | {
        "windows": 10, "direct_windows": 0, "searched_windows": 10, "searched_runs": 30, "vectors": 60, "odd_runs": 0,
        "moved": 10, "passes": 4, "full_tiles": 9, "full_steps": 9, "full_halves": 9, "rest_tiles": 2, "rest_steps": 2,
        "rest_halves": 2, "stores": 4,
    } == found  # fmt: skip


def test_depthwise_terms_by_hand(fit: ModuleType, forms: ModuleType) -> None:
    shape = LayerShape("depthwise", (4, 6, 18), (2, 3, 18), (3, 3), (2, 2), (0, 0), groups=18)
    found = {name: term(shape, fit.Geometry(8, 2, 1, 16, 1)) for name, term in forms.TERMS.items()}
    wanted = {"channel_blocks": 2, "window_rows": 12, "window_columns": 84, "inside_columns": 60, "odd_columns": 60}
    assert found | wanted == found


def test_every_counted_layer_is_predicted(fits: dict[tuple[str, int], Any]) -> None:
    for fitted in fits.values():
        assert np.abs(fitted.errors).max() < LARGEST_ERROR, fitted.calls[int(np.abs(fitted.errors).argmax())]
        assert np.abs(fitted.left_out).mean() < 0.04
    assert sum(len(fitted.calls) for fitted in fits.values()) > 600


@pytest.mark.skipif(missing(M55) is not None, reason=f"{missing(M55)}")
@pytest.mark.skipif(
    missing(M55) is None and compiler_version(M55) != "clang 19.1.7", reason="the counts are clang 19.1.7's"
)
def test_layers_never_fitted_are_predicted(
    fit: ModuleType, forms: ModuleType, fits: dict[tuple[str, int], Any], tmp_path: Path
) -> None:
    shapes = (
        LayerShape("conv", (9, 8, 20), (9, 8, 14), (3, 3), padding=(1, 1)),
        LayerShape("conv", (13, 6, 48), (7, 3, 5), (5, 5), (2, 2), (2, 2)),
        LayerShape("pointwise", (5, 7, 72), (5, 7, 20)),
        LayerShape("grouped", (7, 7, 24), (7, 7, 12), (3, 3), padding=(1, 1), groups=3),
        LayerShape("linear", (1, 1, 300), (1, 1, 50)),
        LayerShape("depthwise", (11, 5, 56), (11, 5, 56), (3, 3), padding=(1, 1), groups=56),
    )
    trials = [
        Trial(kernel, shape, kernel.weight_bits[0], seed=1)
        for shape in shapes
        for kernel in KERNELS
        if shape.layer_class in kernel.classes
    ]
    executed = Runner(M55, KERNELS, tmp_path, count=True).run(trials)
    for trial, instructions in zip(trials, executed, strict=True):
        form = next(form for form in forms.FORMS if form.executes(trial.shape))
        call = fit.Count("", trial.kernel.name, trial.shape, trial.weight_bits, 8, 8, instructions)
        counted = fit.matrix(form, [call], {**TERMS, **forms.TERMS})
        predicted = float((counted @ fits[form.name, trial.weight_bits].coefficients)[0])
        assert abs(predicted / instructions - 1) < LARGEST_ERROR, call
