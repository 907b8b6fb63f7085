"""Non-uniform and multipoint weights: exact integers, exact bytes, signs, bounds and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.discrete import LayerNumbers, Point, integer_weights, weight_reach
from ddq_search.errors import ExportError, SpaceError, VerificationError
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.export.onnx import export_onnx
from ddq_search.graph import WEIGHTED, operations
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower, quantize_input
from ddq_search.integer.program import INT32_MAX, accumulator_bound, check
from ddq_search.integer.serialize import CONSTANTS_FILE, _digest, encode, load_program, save_program
from ddq_search.packing import TABLE_BYTES, codebook_bytes, layer_bytes, pack_rows, point_bytes, weight_bytes
from ddq_search.space import SearchSpace, Variable
from ddq_search.verify import verify_program
from tests.networks import MODELS, random_network, sample_images
from tests.nonuniform import taken_apart, with_codebooks, with_points
from tests.test_integer_lowering import X, layer_of, linear_network


def widths(variable):
    return (2, 3, 4)[len(variable) % 3]


def activations_mixed(variable):
    return 8 if variable.startswith("weights/") else (2, 4, 8)[len(variable) % 3]


def codebook_network(name, seed):
    return with_codebooks(random_network(name, seed, activations_mixed)[0], widths)


def with_weights(codes, *, codebook=None, points=(), bits=2, gain=None, offset=None, scale=None):
    """A linear layer with exactly these weights."""
    codes = np.asarray(codes, np.int32)
    rows = len(codes)
    network = linear_network(np.zeros_like(codes), [0.125] * rows, [1.0] * rows, [0.0] * rows)
    numbers = LayerNumbers(
        codes, bits, np.asarray(scale or [0.125] * rows), np.asarray(gain or [1.0] * rows, float),
        np.asarray(offset or [0.0] * rows, float), None if codebook is None else np.asarray(codebook, np.int8), points,
    )  # fmt: skip
    return replace(network, layers={"fc": numbers})


def point(codes, ratio, bits=2):
    return Point(np.asarray(codes, np.int8), bits, np.asarray(ratio, np.int16))


def both(program, codes):
    expected = executor.run(program, codes)
    found = IntegerEvaluator(program).run(codes)
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor].numpy(), value, err_msg=tensor)
    return expected


# -- what the codes mean ------------------------------------------------------------------------------------------


def test_a_codebook_layer_by_hand():
    network = with_weights([[0, 3], [1, 2]], codebook=[-90, -7, 5, 127], gain=[1.0, 1.0], offset=[1.0, 0.0])
    step = layer_of(network)
    assert step.codes.dtype == np.uint8
    assert step.weights.tolist() == [[-90, 127], [-7, 5]]
    # the accumulator's step is 0.125 · 0.5 and the output's 0.25: a quarter of the sum; centred inputs (1, 1), (2, -1)
    found = both(lower(network, "single"), np.array([[5, 5], [6, 3]], np.uint8))["fc"]
    assert found.tolist() == [[(-90 + 127 + 16 + 2) // 4 + 10, (-7 + 5 + 2) // 4 + 10], [0, (-14 - 5 + 2) // 4 + 10]]


def test_a_multipoint_layer_by_hand():
    network = with_weights(
        [[1, -1], [0, 1]], points=(point([[1, 0], [-1, 1]], [20, 3]), point([[7, -7], [0, 0]], [2, 0], 4))
    )
    step = layer_of(network)
    assert step.weights.tolist() == [[35, -15], [-3, 4]]
    found = both(lower(network, "single"), np.array([[5, 5], [6, 3]], np.uint8))["fc"]
    assert found.tolist() == [[(20 + 2) // 4 + 10, (1 + 2) // 4 + 10], [(85 + 2) // 4 + 10, (-10 + 2) // 4 + 10]]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 30),
    arithmetic=st.sampled_from(["tflite", "single"]),
    style=st.sampled_from(["codebook", "points"]),
)
def test_evaluation_and_executor_agree_on_every_code(name, seed, arithmetic, style):
    network, _ = random_network(name, seed, activations_mixed)
    network = with_codebooks(network, widths) if style == "codebook" else with_points(network)
    program = lower(network, arithmetic)
    both(program, quantize_input(sample_images(2, seed=seed).numpy() * 1.5, program.input.grid))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_points_that_add_up_to_uniform_weights_compute_the_same_codes(name):
    network, _ = random_network(name, 3)
    parts = {layer: taken_apart(numbers, 6, 3, 1) for layer, numbers in network.layers.items()}
    for layer, numbers in parts.items():
        whole = integer_weights(numbers.codes, None, numbers.points)
        np.testing.assert_array_equal(whole, network.layers[layer].codes)
    codes = quantize_input(sample_images(2).numpy(), network.grids["input"])
    expected = executor.run(lower(network, "tflite"), codes)
    for tensor, value in executor.run(lower(replace(network, layers=parts), "tflite"), codes).items():
        np.testing.assert_array_equal(value, expected[tensor])


# -- signs, constants, bounds -------------------------------------------------------------------------------------


def test_negative_gains_use_the_negative_levels_and_unused_entries_make_room():
    symmetric = layer_of(with_weights([[0, 3], [0, 2]], codebook=[-9, 0, 4, 9], gain=[1.0, -1.0]))
    assert symmetric.weights.tolist() == [[-9, 9], [9, -4]]
    assert symmetric.codebook.tolist() == [-9, -4, 4, 9]  # nothing uses 0: its place holds -4
    alone = layer_of(with_weights([[0, 3], [1, 2]], codebook=[-9, 1, 4, 100], gain=[-2.0, -1.0]))
    assert alone.weights.tolist() == [[9, -100], [-1, -4]]
    kept = layer_of(with_weights([[0, 3], [3, 0]], codebook=[-9, -9, 5, 9], gain=[-1.0, 1.0]))
    assert kept.codebook.tolist() == [-9, -9, 5, 9]  # duplicates and unused entries stay where nothing is needed


def test_a_codebook_without_room_for_the_signs_is_refused_with_layer_and_remedy():
    network = with_weights([[0, 1, 2, 3], [0, 1, 2, 3]], codebook=[-9, 0, 4, 100], gain=[1.0, -1.0])
    with pytest.raises(ExportError, match=r"layer 'fc': .* ask for 7 levels, a codebook of 2 bits holds 4; use levels"):
        lower(network, "single")


@pytest.mark.parametrize("style", ["codebook", "points"])
def test_channels_with_gain_zero_are_exact_constants(style):
    extra = {"codebook": [-5, 0, 5, 9]} if style == "codebook" else {"points": (point([[1, 1], [1, -1]], [9, 9]),)}
    codes = [[0, 2], [2, 0]] if style == "codebook" else [[1, -1], [0, 1]]
    network = with_weights(codes, gain=[0.0, -1.0], offset=[1.125, 0.0], **extra)
    step = layer_of(network)
    assert step.weights[0].tolist() == [0, 0]
    found = both(lower(network, "tflite"), np.array([[0, 0], [255, 3]], np.uint8))["fc"]
    assert found[:, 0].tolist() == [15, 15]


def test_a_zero_for_a_constant_channel_takes_an_unused_entry():
    step = layer_of(with_weights([[0, 1], [2, 0]], codebook=[-5, 3, 4, 9], gain=[0.0, 1.0]))
    assert step.weights.tolist() == [[0, 0], [4, -5]]


def test_all_zero_channels_and_multipliers_above_one():
    network = with_weights([[1, 1], [0, 3]], codebook=[-1, 0, 1, 1], offset=[-1.125, 0.0], scale=[3.0, 3.0])
    assert int(layer_of(network).shift[1]) == 3  # 3 · 0.5 / 0.25 = 6
    found = both(lower(network, "tflite"), np.array([[4, 4], [4, 5], [5, 4]], np.uint8))["fc"]
    assert found.tolist() == [[5, 10], [5, 16], [5, 4]]


def test_a_bias_that_overflows_is_refused():
    network = with_weights([[3]], codebook=[-1, 0, 1, 127], scale=[1e-4], offset=[2e5])
    with pytest.raises(ExportError, match=r"layer 'fc', channel 0: a bias of 200000 .* raise the weight bits"):
        lower(network, "single")


def test_points_are_bounded_one_by_one_because_a_kernel_may_sum_them_so():
    cancelling = with_weights([[1]], points=(point([[1]], [100]), point([[-1]], [100])))
    step = layer_of(cancelling)
    assert step.weights.tolist() == [[1]]
    assert accumulator_bound(step, X).tolist() == [201 * 251]
    wide = with_weights([[1] * 600], points=(point([[127] * 600], [32767], 8),), scale=[1e-6])
    assert weight_reach(*(getattr(wide.layers["fc"], k) for k in ("codes", "codebook", "points")))[0] * 251 > INT32_MAX
    with pytest.raises(ExportError, match=r"'fc', channel 0: its products may sum to \d+, which overflows"):
        lower(wide, "single")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": [1, 2, 3]}, "a codebook of 2 bits has 4 int8 levels"),
        ({"codebook": [-128, 0, 1, 2]}, "levels leave ±127"),
        ({"codebook": [1, 2, 3, 4], "codes": [[4]]}, "weight codes exceed 2 bits"),
        ({"codebook": [1, 2, 3, 4], "points": (point([[1]], [1]),)}, "either a codebook or further points"),
        ({"points": (point([[2]], [1]),)}, "codes of a point exceed 2 bits"),
        ({"points": (point([[1]], [-32768]),)}, "leave ±32767 .int16.; choose a coarser base"),
        ({"points": (Point(np.array([[1]], np.int8), 2, np.array([40000])),)}, "leave ±32767"),
        ({"points": (point([[1, 1]], [1]),)}, "one code per weight"),
        ({"points": (point([[1]], [1, 1]),)}, "one ratio per output channel"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        with_weights(**({"codes": [[1]]} | changes))


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("style", ["codebook", "points"])
def test_round_trip_and_price(tmp_path, name, style):
    network, _ = random_network(name, 1, activations_mixed)
    network = with_codebooks(network, widths) if style == "codebook" else with_points(network, 4, 2, 2)
    program = lower(network, "tflite")
    save_program(program, tmp_path)
    loaded = load_program(tmp_path)
    assert encode(loaded) == encode(program)
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9))
    for tensor, value in executor.run(loaded, codes).items():
        np.testing.assert_array_equal(value, executor.run(program, codes)[tensor])
    price, seen = 0, set()
    for op in operations(network.graph):
        if op.kind in WEIGHTED:
            bits = network.layers[op.name].bits
            weights = weight_bytes(op.rows, op.row_length, bits)
            weights += codebook_bytes(bits) if style == "codebook" else 2 * point_bytes(op.rows, op.row_length, 2)
            price += layer_bytes(op.rows, op.row_length, bits) - weight_bytes(op.rows, op.row_length, bits)
            price += weights if op.module not in seen else 0
            seen.add(op.module)
        price += TABLE_BYTES * (op.kind == "activation")
    assert (tmp_path / CONSTANTS_FILE).stat().st_size == price


def test_the_bytes_of_a_codebook_layer_and_of_points():
    _, constants = encode(lower(with_weights([[0, 3, 1], [2, 2, 0]], codebook=[-90, -7, 5, 127]), "single"))
    assert constants[:6] == bytes([0b011100, 0b001010]) + np.array([-90, -7, 5, 127], np.int8).tobytes()
    assert len(constants) == layer_bytes(2, 3, 2, codebook=True) == 2 + 4 + 2 * 9
    _, constants = encode(lower(with_weights([[1, -1]], points=(point([[3, -7]], [-300], 4),)), "single"))
    assert constants[:4] == pack_rows(np.array([[1, -1]]), 2) + bytes([0x93]) + np.int16(-300).tobytes()
    assert len(constants) == layer_bytes(1, 2, 2) + point_bytes(1, 2, 4) == 1 + 9 + 1 + 2


@pytest.mark.parametrize(
    ("style", "edit"),
    [
        ("codebook", {"codebook": False}),
        ("codebook", {"bits": 8}),
        ("codebook", {"points_bits": [2]}),
        ("codebook", {"points_bits": None}),
        ("points", {"codebook": True}),
        ("points", {"points_bits": [2, 8]}),
        ("points", {"points_bits": [2]}),
        ("points", {"points_bits": [2, 77]}),
    ],
)
def test_hostile_edits_are_refused(tmp_path, style, edit):
    network, _ = random_network("SqueezeExcite", 4)
    network = with_codebooks(network, lambda _: 2) if style == "codebook" else with_points(network)
    save_program(lower(network, "tflite"), tmp_path)
    structure = tmp_path / "program.json"
    facts = json.loads(structure.read_text())
    next(step for step in facts["steps"] if step["name"] == "stem").update(edit)
    facts["sha256"] = _digest({key: value for key, value in facts.items() if key != "sha256"})
    structure.write_text(json.dumps(facts))
    with pytest.raises(VerificationError):
        load_program(tmp_path)


def test_a_broken_codebook_in_a_program_is_an_export_error():
    program = lower(with_weights([[0, 3]], codebook=[-9, 0, 4, 9]), "single")
    step = program.steps[1]
    step.codes[0, 0] = 4
    with pytest.raises(ExportError, match="'fc': weight codes exceed 2 bits"):
        check(program)
    steps = (program.steps[0], replace(step, codes=step.codes.astype(np.int8)), program.steps[2])
    with pytest.raises(ExportError, match="'fc': weight codes must be uint8"):
        check(replace(program, steps=steps))


@pytest.mark.parametrize("style", ["codebook", "points"])
def test_the_proof_holds_and_onnx_carries_what_the_codes_stand_for(tmp_path, style):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, _ = random_network("Residual", 2, activations_mixed)
    network = with_codebooks(network, widths) if style == "codebook" else with_points(network)
    program = lower(network, "single")
    save_program(program, tmp_path)
    export_onnx(program, tmp_path / "model.onnx")
    assert verify_program(network, tmp_path, sample_images(32).numpy(), strict=True).passed
    model = onnx.load(tmp_path / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["weight_containers"]) == dict.fromkeys(network.layers, "int8")
    stored = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    for step in program.steps[1:]:
        if step.name in network.layers:
            np.testing.assert_array_equal(stored[f"{step.name}/weights"], step.weights)


def test_onnx_takes_wider_integers_for_wide_points_and_refuses_what_has_none(tmp_path):
    onnx = pytest.importorskip("onnx")
    coarse = lower(with_weights([[1, 0]], points=(point([[1, -1]], [300]),)), "single")
    export_onnx(coarse, tmp_path / "model.onnx")
    stored = {c.name: c.data_type for c in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert stored["fc/weights"] == onnx.TensorProto.INT16
    wide = lower(with_weights([[1]], points=(point([[7]], [32767], 4),), scale=[1e-4]), "single")
    with pytest.raises(ExportError, match="layer 'fc': its multipoint weights reach ±229370"):
        export_onnx(wide, tmp_path / "wide.onnx")


def test_only_weight_variables_have_codebooks():
    variables = (Variable("activations/a", "activations", (8,), ("a",)), Variable("weights/a", "weights", (2,), ("a",)))
    space = SearchSpace(variables, {}, {}, codebook_weights=frozenset({"weights/a"}))
    assert space.codebook_weights == {"weights/a"}
    for wrong in ("activations/a", "weights/b"):
        with pytest.raises(SpaceError, match=f"'{wrong}' has a codebook but is no weight variable"):
            SearchSpace(variables, {}, {}, codebook_weights=frozenset({wrong}))
