"""The file format: exact sizes, lossless round trips, and refusals that state the reason."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddq_search.errors import ExportError, VerificationError
from ddq_search.graph import WEIGHTED, operations
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from ddq_search.integer.serialize import _digest, encode, load_program, save_program
from ddq_search.packing import TABLE_BYTES, layer_bytes, weight_bytes
from tests.networks import MODELS, random_network


def mixed(variable):
    return (2, 4, 8)[len(variable) % 3]


@pytest.fixture
def saved(tmp_path):
    network, _ = random_network("SqueezeExcite", 4, mixed)
    program = lower(network, "tflite")
    save_program(program, tmp_path)
    return tmp_path, program


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_round_trip_and_price(tmp_path, name, arithmetic):
    network, _ = random_network(name, 1, mixed)
    program = lower(network, arithmetic)
    save_program(program, tmp_path)
    loaded = load_program(tmp_path)
    assert encode(loaded) == encode(program)
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9))
    expected = executor.run(program, codes)
    for tensor, value in executor.run(loaded, codes).items():
        np.testing.assert_array_equal(value, expected[tensor])
    price, seen = 0, set()
    for op in operations(network.graph):
        if op.kind in WEIGHTED:
            bits = network.layers[op.name].bits
            price += layer_bytes(op.rows, op.row_length, bits)
            price -= weight_bytes(op.rows, op.row_length, bits) if op.module in seen else 0
            seen.add(op.module)
        price += TABLE_BYTES * (op.kind == "activation")
    assert (tmp_path / "program.bin").stat().st_size == price


def test_uses_of_one_module_store_their_weights_once():
    network, _ = random_network("Shuffle", 0)
    facts = {step["name"]: step for step in encode(lower(network, "single"))[0]["steps"]}
    assert facts["branch"]["codes_offset"] == facts["branch#1"]["codes_offset"]
    assert facts["branch"]["constants_offset"] != facts["branch#1"]["constants_offset"]


def test_truncated_and_edited_constants_are_refused(saved):
    folder, _ = saved
    constants = folder / "program.bin"
    data = constants.read_bytes()
    constants.write_bytes(data[:-3])
    with pytest.raises(VerificationError, match="truncated"):
        load_program(folder)
    constants.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(VerificationError, match=r"program\.bin was edited"):
        load_program(folder)


def test_missing_and_broken_structure_is_refused(saved):
    folder, _ = saved
    structure = folder / "program.json"
    text = structure.read_text()
    for broken, message in [
        (text[:100], "not JSON"),
        ("[]", "not an integer program"),
        (text.replace('"version": 2', '"version": 9'), "has version 9; this release reads 2"),
        (text.replace('"version": 2', '"version": 1'), "has version 1; this release reads 2"),
        (text.replace('"low": 0', '"low": 1', 1), "was edited after export"),
    ]:
        structure.write_text(broken)
        with pytest.raises(VerificationError, match=message):
            load_program(folder)
    structure.unlink()
    with pytest.raises(VerificationError, match="cannot read"):
        load_program(folder)


def _edits():
    def step(facts, name):
        return next(s for s in facts["steps"] if s["name"] == name)

    return {
        "step kind": lambda f: step(f, "stem").update(step="Dream"),
        "missing key": lambda f: step(f, "stem").pop("bits"),
        "offset": lambda f: step(f, "stem").update(codes_offset=10**9),
        "negative offset": lambda f: step(f, "stem").update(constants_offset=-4),
        "shape": lambda f: step(f, "stem").update(codes_shape=[0, 3, 3, 3]),
        "bits": lambda f: step(f, "stem").update(bits=77),
        "clamp": lambda f: step(f, "stem").update(high=4096),
        "rounding": lambda f: step(f, "mul").update(rounding="triple"),
        "factor": lambda f: step(f, "mul").update(factor={"multiplier": 5, "shift": 0}),
        "source": lambda f: step(f, "stem").update(inputs=["later"]),
        "arity": lambda f: step(f, "mul").update(inputs=["input"]),
        "scale": lambda f: step(f, "stem")["scale"].pop(),
        "grid": lambda f: f["tensors"][0]["grid"].update(zero_point=-1),
        "tensors": lambda f: f["tensors"].pop(),
        "steps": lambda f: f.update(steps=[]),
        "steps type": lambda f: f.update(steps=3),
        "arithmetic": lambda f: f.update(arithmetic="float"),
        "policy": lambda f: f.update(policy=None),
    }


@pytest.mark.parametrize("edit", sorted(_edits()))
def test_hostile_edits_with_a_fresh_checksum_are_refused(saved, edit):
    folder, _ = saved
    structure = folder / "program.json"
    facts = json.loads(structure.read_text())
    _edits()[edit](facts)
    facts["sha256"] = _digest({key: value for key, value in facts.items() if key != "sha256"})
    structure.write_text(json.dumps(facts))
    with pytest.raises(VerificationError):
        load_program(folder)


def test_nothing_but_the_two_files_is_left_behind(saved):
    folder, program = saved
    save_program(program, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["program.bin", "program.json"]


def test_a_folder_that_cannot_be_written_is_an_export_error(saved, tmp_path):
    _, program = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        save_program(program, tmp_path / "file")
