"""Policies of other tools: the same decisions there and back, and mistakes named by line, entry and layer."""

from __future__ import annotations

import json
import random

import pytest

from ddq_search.errors import PolicyError
from ddq_search.graph import operations
from ddq_search.interchange import FORMATS, read_any_policy, write_policy
from ddq_search.policy import Policy
from ddq_search.quantizer_recipe import unsupported
from ddq_search.space import Rule, build_space
from ddq_search.trace import trace
from tests.networks import MODELS, sample_images


class Anything:
    """A device that executes every precision."""

    def legal_weight_bits(self, op):
        return (2, 4, 8, 32)

    legal_activation_bits = legal_weight_bits


def posed(name, bits=(2, 4, 8), rules=()):
    graph = trace(MODELS[name]().eval(), sample_images(1))
    return graph, build_space(graph, Anything(), weight_bits=bits, activation_bits=bits, rules=rules)


GRAPH, SPACE = posed("Residual")
BITS = {
    "activations/input": 8, "weights/conv1": 4, "activations/conv1": 2, "weights/conv2": 8, "activations/conv2": 4,
    "weights/short": 2, "activations/short": 8, "activations/add": 4, "activations/mean": 8, "weights/fc": 8,
    "activations/fc": 8,
}  # fmt: skip
CSV = (
    "layer,weight_bits,activation_bits\r\ninput,,8\r\nconv1,4,2\r\nconv2,8,4\r\nshort,2,8\r\nadd,,4\r\nmean,,8\r\n"
    "reshape,,8\r\nfc,8,8\r\noutput,,8\r\n"
)


def read(tmp_path, text, name="mine.csv", space=SPACE, graph=GRAPH):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_any_policy(path, space, graph)


def recipe(**changes):
    entries = json.loads(write_policy(Policy("p", BITS), SPACE, GRAPH, "recipe"))
    for position, change in changes.items():
        entries[int(position.removeprefix("e"))] |= change
    return entries


def static(weights, activations):
    return {
        "weight_tensor_config": {"num_bits": weights, "symmetric": True, "granularity": "CHANNELWISE"},
        "activation_tensor_config": {"num_bits": activations, "symmetric": False},
        "compute_precision": "INTEGER",
    }


def entry(regex, weights, activations, operation="*"):
    config = static(weights, activations)
    return {"regex": regex, "operation": operation, "algorithm_key": "min_max_uniform_quantize", "op_config": config}


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("wanted", FORMATS)
def test_every_policy_comes_back(tmp_path, name, wanted):
    graph, space = posed(name)
    chance = random.Random(0)
    for _ in range(5):
        policy = Policy("mine", {v.name: chance.choice(v.candidates) for v in space.variables})
        file = "mine.csv" if wanted == "csv" else "mine.json"
        assert read(tmp_path, write_policy(policy, space, graph, wanted), file, space, graph) == policy


def test_an_unknown_format_is_refused():
    with pytest.raises(PolicyError, match="unknown policy format 'toml'; available: json, csv, recipe"):
        write_policy(Policy("p", BITS), SPACE, GRAPH, "toml")


# -- CSV ----------------------------------------------------------------------------------------------------------


def test_csv_has_one_row_per_layer_in_execution_order():
    assert write_policy(Policy("p", BITS), SPACE, GRAPH, "csv") == CSV


def test_csv_of_another_writer_is_read(tmp_path):
    rows = ['8,"input",', "2,conv1,4", " 4 ,conv2,8", "8,short,2", "4,add,", "8,mean,", "", ",fc,8", "8,output,", ""]
    shuffled = "\ufeffactivation_bits,layer,weight_bits\n" + "\n".join(rows)
    assert read(tmp_path, shuffled).bits == BITS
    strange = 'größe, "7"\n'
    graph, space = posed("Residual", rules=[])
    renamed = type(space)(
        tuple(
            type(v)(v.name, v.role, v.candidates, tuple(strange if m == "conv1" else m for m in v.members))
            for v in space.variables
        ),
        space.weights_of,
        {strange if name == "conv1" else name: v for name, v in space.activations_of.items()},
    )
    text = write_policy(Policy("p", BITS), renamed, graph, "csv")
    assert '"größe, ""7""\n",4,2\r\n' in text
    assert read(tmp_path, text, space=renamed).bits == BITS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("conv2,8,4", "conv9,8,4"), r"line 4: no layer 'conv9' in this model; known are 'input', 'conv1'"),
        (CSV.replace("conv2,8,4", "conv2,3,4"), r"line 4: weight_bits of 'conv2' is '3'; .*are \[2, 4, 8\]"),
        (CSV.replace("conv2,8,4", "conv2,8,4.0"), r"line 4: activation_bits of 'conv2' is '4.0'"),
        (CSV.replace("conv2,8,4", "conv2,²,4"), r"line 4: weight_bits of 'conv2' is '²'"),
        (CSV.replace("conv2,8,4", f"conv2,{'9' * 5000},4"), "line 4: weight_bits of 'conv2'"),
        (CSV.replace("conv2,8,4", "conv2,08,4"), "line 4: weight_bits of 'conv2' is '08'"),
        (CSV.replace("add,,4", "add,4,4"), "line 6: weight_bits of 'add' is 4, but this operation has no weights"),
        (CSV.replace("reshape,,8", "reshape,,4"), r"line 8: activation_bits of 'reshape' is 4, line 7 said 8 for"),
        (CSV.replace("conv2,8,4", "conv2,8"), "line 4: 2 cells instead of 3"),
        (CSV.replace("conv2,8,4", 'conv2,"8'), r"line \d+ is not CSV"),
        (CSV.replace("conv2,8,4", "conv2,,4"), "no bitwidth for 'weights/conv2'"),
        (CSV.replace("layer,", "name,"), "line 1: the columns must be layer,weight_bits,activation_bits"),
        ("", "line 1: the columns must be"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (CSV.replace("input,,8", "input,,4"), r"line 2: activation_bits of 'input' is '4'; its candidates are \[8\]"),
    ],
)
def test_mistakes_in_a_csv_are_named(tmp_path, text, message):
    with pytest.raises(PolicyError, match=message) as caught:
        read(tmp_path, text)
    assert "mine.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.csv", "missing.json"])
def test_missing_files(tmp_path, name):
    with pytest.raises(PolicyError, match=f"cannot read policy .*{name}"):
        read_any_policy(tmp_path / name, SPACE, GRAPH)


# -- recipe -------------------------------------------------------------------------------------------------------


def test_recipe_entries_are_those_of_the_tool():
    conv1 = recipe()[1]
    assert conv1 == {
        "regex": "(^|[/;])conv1([/;]|$)",
        "operation": "CONV_2D",
        "algorithm_key": "min_max_uniform_quantize",
        "op_config": {
            "activation_tensor_config": {
                "num_bits": 2, "symmetric": False, "granularity": "TENSORWISE", "dtype": "INT",
            },
            "weight_tensor_config": {"num_bits": 4, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"},
            "compute_precision": "INTEGER",
            "explicit_dequantize": False,
            "skip_checks": True,
            "min_weight_elements": 0,
        },
    }  # fmt: skip
    assert [e["operation"] for e in recipe()] == [
        "INPUT", "CONV_2D", "CONV_2D", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED", "OUTPUT",
    ]  # fmt: skip
    assert unsupported(Policy("p", BITS), SPACE, GRAPH) == ["conv1", "conv2", "short", "add"]
    graph, _ = posed("Mobile")
    assert {op.name for op in operations(graph) if op.is_depthwise} == {"depthwise"}


def test_a_supported_policy_needs_no_skipped_checks():
    bits = dict.fromkeys(BITS, 8) | {"weights/conv1": 4, "weights/fc": 4}
    policy = Policy("p", bits)
    assert unsupported(policy, SPACE, GRAPH) == []
    text = write_policy(policy, SPACE, GRAPH, "recipe")
    assert not any(e["op_config"]["skip_checks"] for e in json.loads(text))


def test_later_entries_win_and_a_star_replaces_its_expression(tmp_path):
    entries = [
        entry(".*", 2, 8), entry("conv", 4, 8, "CONV_2D"), entry("conv2", 8, 8),
        entry(".*", 8, 8, "FULLY_CONNECTED"), entry("conv", 2, 8, "FULLY_CONNECTED"),
    ]  # fmt: skip
    bits = read(tmp_path, json.dumps(entries), "r.json").bits
    weights = {name: value for name, value in bits.items() if name.startswith("weights/")}
    assert weights == {"weights/conv1": 4, "weights/conv2": 8, "weights/short": 2, "weights/fc": 8}
    star = read(tmp_path, json.dumps([*entries, entry(".*", 8, 8)]), "r.json").bits
    assert (star["weights/short"], star["weights/conv1"]) == (8, 4)  # the star stays the first expression


def test_what_stays_float_needs_a_float_candidate(tmp_path):
    graph, space = posed("Residual", (8, 32), [Rule("weights/conv1", (32,)), Rule("activations/conv1", (32,))])
    entries = [entry(".*", 8, 8), {"regex": "conv1$", "operation": "*", "algorithm_key": "no_quantize"}]
    bits = read(tmp_path, json.dumps(entries), "r.json", space, graph).bits
    assert [name for name, value in bits.items() if value == 32] == ["weights/conv1", "activations/conv1"]
    exported = write_policy(Policy("p", bits), space, graph, "recipe")
    assert [e["algorithm_key"] for e in json.loads(exported)].count("no_quantize") == 1
    assert read(tmp_path, exported, "r.json", space, graph).bits == bits
    weight_only = json.loads(write_policy(Policy("p", bits | {"activations/short": 32}), space, graph, "recipe"))[3]
    assert "activation_tensor_config" not in weight_only["op_config"]
    assert weight_only["op_config"]["compute_precision"] == "FLOAT"
    with pytest.raises(PolicyError, match="'conv1' has float weights and 8-bit activations"):
        write_policy(Policy("p", bits | {"activations/conv1": 8}), space, graph, "recipe")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (recipe(e2={"regex": "conv9"}), "entry 3: 'conv9' matches no layer of this model; known are 'input'"),
        (recipe(e2={"regex": "conv("}), r"entry 3: 'regex': 'conv\(' is not a regular expression"),
        (recipe(e2={"regex": 7}), "entry 3: 'regex': Input should be a valid string"),
        (recipe(e2={"op_config": {}}), "entry 3: 'op_config' has no 'weight_tensor_config'"),
        (recipe(e2={"op_config": static(3, 8)}), r"weights of 'conv2' at 3 bits; the candidates are \[2, 4, 8\]"),
        (recipe(e2={"op_config": static("8", 8)}), r"entry 3: 'op_config.weight_tensor_config.num_bits'"),
        (recipe(e2={"algorithm_key": "no_quantize"}), r"weights of 'conv2' stays float; the candidates"),
        (recipe()[:-2], "weights of 'fc' stays float"),
        (recipe(e6={"op_config": static(8, 4)}), "'reshape' at 4 bits, but 'mean', which shares its precision, at 8"),
        ([3], "entry 1: Input should be a valid dictionary"),
        ([{"regex": ".*"}], "entry 1: 'operation': Field required"),
        ([], "activations of 'input' stays float"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, entries, message):
    with pytest.raises(PolicyError, match=message) as caught:
        read(tmp_path, json.dumps(entries), "recipe.json")
    assert "recipe.json" in str(caught.value)


def test_names_are_matched_literally(tmp_path):
    graph, space = posed("Shuffle")
    assert any("#" in op.name for op in operations(graph))
    policy = Policy("mine", {v.name: v.candidates[-1] for v in space.variables})
    assert read(tmp_path, write_policy(policy, space, graph, "recipe"), "mine.json", space, graph) == policy
