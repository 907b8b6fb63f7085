"""DDQ's low-precision matrix-vector form: sums of inputs per code, then the table of levels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.integer import executor
from ddq_search.integer.lowering import lower, quantize_input
from tests.networks import MODELS, random_network, sample_images
from tests.nonuniform import with_codebooks


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 6), data=st.data())
def test_the_matrix_vector_form_with_merged_levels_is_an_identity(bits, data):
    """``y_m = (1/Z_U) Σ_k q̃_k S_{m,k}``: a block of fine levels shares one sum of inputs; exact in integers.

    The left side averages the levels first and multiplies each weight; the right side never does either.
    """
    opened = data.draw(st.integers(0, bits))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    z = 2 ** (bits - opened)
    q = np.sort(rng.integers(-127, 128, 2**bits))
    codes = rng.integers(0, 2**opened, (5, 30))
    x = rng.integers(0, 256, 30)
    weights = q.reshape(2**opened, z).mean(1)[codes]  # multiples of 1/Z_U: exact in float64
    one_hot = codes[..., None] == np.arange(2**bits) // z  # U x_o: a value stands on its whole block
    s = np.einsum("mnk,n->mk", one_hot.astype(np.int64), x)
    total = s @ q
    np.testing.assert_array_equal(weights @ x * z, total)
    if opened == bits:
        np.testing.assert_array_equal(total, q[codes] @ x)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_the_executor_computes_the_same_codes_by_code(name, arithmetic):
    widths = {0: 2, 1: 3, 2: 4, 3: 8}
    network = with_codebooks(random_network(name, 5)[0], lambda variable: widths[len(variable) % 4])
    program = lower(network, arithmetic)
    codes = quantize_input(sample_images(3, seed=1).numpy() * 1.5, program.input.grid)
    found = executor.run(program, codes, by_code=True)
    for tensor, value in executor.run(program, codes).items():
        np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)


def test_one_multiplication_per_code(monkeypatch):
    network = with_codebooks(random_network("Residual", 0)[0], lambda _: 2)
    program = lower(network, "single")
    weights = []
    product = executor._matrix_product
    monkeypatch.setattr(executor, "_matrix_product", lambda *a: weights.append(a[2]) or product(*a))
    codes = quantize_input(sample_images(2).numpy(), program.input.grid)
    executor.run(program, codes, by_code=True)
    assert len(weights) == 4  # one linear layer of 2 bits: four sums of inputs, no multiplication inside
    assert all(set(np.unique(part)) <= {0, 1} for part in weights)
    np.testing.assert_array_equal(sum(weights), np.ones_like(weights[0]))
