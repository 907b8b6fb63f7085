"""Counts of a layer by hand and against a brute-force walk over its windows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.layer_shape import LayerShape
from hardware_models.engine import Kernel
from hardware_models.terms import TERMS, counts, scratch


def kernel(**facts: object) -> Kernel:
    """A kernel of 8-bit codes with the given geometry."""
    base = {
        "name": "k", "classes": ["conv"], "weight_bits": 8, "activation_bits": 8, "terms": {"macs": 1.0},
        "kind": "static", "source": "test",
    }  # fmt: skip
    return Kernel.model_validate(base | facts)


CONV = LayerShape("conv", (5, 6, 3), (5, 6, 7), (3, 3), padding=(1, 1))


def test_counts_by_hand() -> None:
    found = counts(TERMS, CONV, kernel(tile_pixels=4, tile_channels=2, k_multiple=4))
    assert found | {
        "once": 1, "macs": 30 * 7 * 27, "outputs": 210, "pixels": 30, "columns": 30 * 27, "runs": 90, "weights": 189,
        "channels": 7, "inputs": 90, "border_pixels": 30 - 12, "border_macs": 18 * 27 * 7, "tiles": 8 * 4,
        "padded_macs": 32 * 8 * 28, "steps": 32 * 7, "tail_macs": 30 * 7 * 27 - 28 * 6 * 24, "tail_outputs": 210 - 168,
        "taps": 270, "inside_taps": (5 * 3 - 2) * (6 * 3 - 2), "weight_passes": 189, "panel_bytes": 30 * 28,
        "panel_runs": 90, "weight_bytes": 189, "input_bytes": 90, "winograd_macs": 2 * 2 * 36 * 7 * 3,
    } == found  # fmt: skip


def test_a_depthwise_layer_is_one_product_over_its_channels() -> None:
    shape = LayerShape("depthwise", (4, 4, 20), (4, 4, 20), (3, 3), padding=(1, 1), groups=20)
    found = counts(("padded_macs", "tiles", "taps", "inside_macs"), shape, kernel(tile_channels=16))
    assert found == {"padded_macs": 16 * 32 * 9, "tiles": 32, "taps": 144, "inside_macs": 20 * 10 * 10}


def test_scratch_by_hand() -> None:
    assert scratch({"row": 4}, CONV, kernel(k_multiple=4)) == 112
    assert scratch({"panel": 1}, CONV, kernel(k_multiple=16, tile_pixels=4)) == 128
    assert scratch({"panel": 1}, LayerShape("pointwise", (4, 4, 16), (4, 4, 8)), kernel(k_multiple=16)) == 0


def test_a_strided_pointwise_layer_sums_its_weights_per_row() -> None:
    shape = LayerShape("pointwise", (8, 8, 4), (4, 4, 6), stride=(2, 2))
    assert counts(["weight_passes"], shape, kernel()) == {"weight_passes": 96}


geometry = st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2)
)


@settings(deadline=None, max_examples=150)
@given(geometry, st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_counts_against_a_walk_over_windows(
    size: tuple[int, int, int, int, int, int], c_in: int, c_out: int, pixels: int, channels: int, step: int
) -> None:
    height, width, kh, kw, stride, pad = size
    out = (height + 2 * pad - kh) // stride + 1, (width + 2 * pad - kw) // stride + 1
    if min(out) < 1:
        return
    shape = LayerShape("conv", (height, width, c_in), (*out, c_out), (kh, kw), (stride, stride), (pad, pad))
    inside = [
        [0 <= y * stride - pad + i < height and 0 <= x * stride - pad + j < width
         for i, j in itertools.product(range(kh), range(kw))]
        for y, x in itertools.product(range(out[0]), range(out[1]))
    ]  # fmt: skip
    found = counts(TERMS, shape, kernel(tile_pixels=pixels, tile_channels=channels, k_multiple=step))
    assert found["inside_taps"] == sum(map(sum, inside))
    assert found["border_pixels"] == sum(not all(window) for window in inside)
    assert found["inside_macs"] == pytest.approx(found["inside_taps"] * c_in * c_out)
    assert found["padded_macs"] >= found["macs"] >= found["tail_macs"] >= 0
    assert found["steps"] * pixels * channels * step == found["padded_macs"]
    if (out[0] * out[1]) % pixels == c_out % channels == shape.row_length % step == 0:
        assert found["tail_macs"] == found["tail_outputs"] == 0
        assert found["padded_macs"] == found["macs"]
