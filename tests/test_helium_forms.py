"""Closed forms of the Helium kernels: terms by hand, every counted layer within 10 percent, layers never fitted."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ddq_search.export.c.helium import KERNELS
from ddq_search.export.c.targets import TARGETS, compiler_version, missing
from ddq_search.export.c.trials import Runner, Trial
from ddq_search.layer_shape import LayerShape

M55 = TARGETS["cortex-m55-clang"]
LARGEST_ERROR = 0.10


@pytest.fixture(scope="module")
def forms(repository: Path) -> ModuleType:
    sys.path.insert(0, str(repository / "benchmarks" / "kernels"))
    try:
        return importlib.import_module("helium_forms")
    finally:
        sys.path.pop(0)


def test_terms_by_hand(forms: ModuleType) -> None:
    """10 windows (3 tiles of 3, 1 left over), 5 channels, K = 9 * 8 = 72: one block of 64 two-bit codes and a half."""
    shape = LayerShape("conv", (2, 5, 8), (2, 5, 5), (3, 3), padding=(1, 1))
    terms = forms.HELIUM_TERMS
    found = {name: term(shape, forms.Geometry(2, 2, 3, 2, 64)) for name, term in terms.items()}
    assert found | {
        "windows": 10, "direct_windows": 0, "searched_windows": 10, "searched_runs": 30, "vectors": 60, "odd_runs": 0,
        "moved": 10, "passes": 4, "full_tiles": 9, "full_steps": 9, "full_halves": 9, "rest_tiles": 2, "rest_steps": 2,
        "rest_halves": 2, "stores": 4,
    } == found  # fmt: skip


def test_depthwise_terms_by_hand(forms: ModuleType) -> None:
    shape = LayerShape("depthwise", (4, 6, 18), (2, 3, 18), (3, 3), (2, 2), (0, 0), groups=18)
    terms = forms.HELIUM_TERMS
    found = {name: term(shape, forms.Geometry(8, 2, 1, 16, 1)) for name, term in terms.items()}
    wanted = {"channel_blocks": 2, "window_rows": 12, "window_columns": 84, "odd_columns": 84, "stores": 4}
    assert found | wanted == found


@pytest.mark.parametrize("weight_bits", [8, 4, 2])
def test_every_counted_layer_is_predicted(forms: ModuleType, weight_bits: int) -> None:
    counts = [*forms.read(forms.COUNTS), *forms.read(forms.MORE_COUNTS)]
    predicted = 0
    for form in forms.FORMS:
        own, _, errors, held_out = forms.fitted(form, weight_bits, counts)
        predicted += len(own)
        assert np.abs(errors).max() < LARGEST_ERROR, own[int(np.abs(errors).argmax())]
        assert np.abs(held_out).mean() < 0.04
    assert predicted == sum(count.weight_bits == weight_bits for count in counts)


@pytest.mark.skipif(missing(M55) is not None, reason=f"{missing(M55)}")
def test_layers_never_fitted_are_predicted(forms: ModuleType, tmp_path: Path) -> None:
    counts = [*forms.read(forms.COUNTS), *forms.read(forms.MORE_COUNTS)]
    if compiler_version(M55) != "clang 19.1.7":
        pytest.skip(f"the counts are clang 19.1.7's, this machine has {compiler_version(M55)}")
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
        own = forms.counted_by(form, trial.weight_bits, counts)
        coefficients = forms.fit_relative(forms.matrix(form, own), np.array([count.instructions for count in own]))
        count = forms.Count("", trial.kernel.name, trial.shape, trial.weight_bits, 8, 8, instructions)
        predicted = float((forms.matrix(form, [count]) @ coefficients)[0])
        assert abs(predicted / instructions - 1) < LARGEST_ERROR, count
