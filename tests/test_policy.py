"""Policy files: read, edited, refused with the name of the layer at fault."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pydantic import ValidationError

from ddq_search.errors import PolicyError
from ddq_search.policy import SCHEMA_FILE, Policy, PolicyDocument, json_schema, read_policy, uniform
from ddq_search.space import SearchSpace, Variable

SPACE = SearchSpace(
    (
        Variable("activations/input", "activations", (8,), ("input",)),
        Variable("weights/conv1", "weights", (2, 4, 8), ("conv1",)),
        Variable("activations/conv1", "activations", (4, 8), ("conv1",)),
    ),
    {}, {},
)  # fmt: skip
BITS = {"activations/input": 8, "weights/conv1": 4, "activations/conv1": 8}


def document(**changes):
    return json.loads(Policy("p00", BITS, "search", {"latency_s": 1.0}).to_json()) | changes


def read(tmp_path, content):
    path = tmp_path / "edited.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_policy(path, SPACE)


def test_round_trip(tmp_path):
    policy = read(tmp_path, Policy("p00", dict(reversed(BITS.items())), "search", {"latency_s": 1.0}).to_json())
    assert policy == Policy("p00", BITS, "user", {"latency_s": 1.0})
    assert list(policy.bits) == [v.name for v in SPACE.variables]
    assert policy.by_role() == {"weights": {"conv1": 4}, "activations": {"input": 8, "conv1": 8}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a version 1 'ddq-search policy' file"),
        (document(version=2), "is not a version 1"),
        (document(format="x"), "is not a version 1"),
        (document(weights=[4]), "'weights' must map names to bitwidths"),
        (
            document(weights={"conv1": 4, "conv9": 4}),
            "'weights/conv9' is not in this model; known are 'activations/input'",
        ),
        (document(weights={}), "no bitwidth for 'weights/conv1'"),
        (document(weights={"conv1": 3}), r"'weights/conv1' at 3 bits; its candidates are \[2, 4, 8\]"),
        (document(weights={"conv1": True}), "'weights/conv1' at True bits"),
        (document(weights={"conv1": 4.0}), "'weights/conv1' at 4.0 bits"),
        (document(weights={"conv1": "4"}), "'weights/conv1' at '4' bits"),
        (document(weights={"conv1": [4]}), "'weights/conv1' at"),
        (document(weights={"conv1": None}), "'weights/conv1' at None bits"),
        (document(activations={"input": 4, "conv1": 8}), "'activations/input' at 4 bits"),
        (document(weights={"conv9": 0}), "'weights/conv9' at 0 bits; a bitwidth is a whole number up to 32"),
        (document(weight={"conv1": 4}), "'weight': Extra inputs are not permitted"),
        (document(name=3), "'name': Input should be a valid string"),
        (document(facts=[]), "'facts': Input should be a valid dictionary"),
        ('{"format": 1, "format": 2}', "is not JSON: the key 'format' is given twice"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    with pytest.raises(PolicyError, match=message) as caught:
        read(tmp_path, content)
    assert "edited.json" in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(PolicyError, match="cannot read policy"):
        read_policy(tmp_path / "nothing.json", SPACE)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(PolicyError, match="is not JSON"):
        read_policy(tmp_path / "binary.json", SPACE)


def test_uniform_takes_the_widest_candidate_not_above():
    assert list(uniform(SPACE, 8, 8).values()) == [8, 8, 8]
    assert list(uniform(SPACE, 6, 6).values()) == [8, 4, 4]
    assert list(uniform(SPACE, 2, 2).values()) == [8, 2, 4]


def test_the_shipped_schema_is_that_of_the_reader():
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema.keys() == json_schema().keys()
    assert schema["properties"] == json_schema()["properties"]
    assert schema["required"] == json_schema()["required"]


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({}, True),
        ({"$schema": "https://example.org/policy.schema.json"}, True),
        ({"facts": None, "name": "größe"}, True),
        ({"weights": {'a "b"\n': 32}, "activations": {}}, True),
        ({"version": 2}, False),
        ({"format": "policy"}, False),
        ({"weights": None}, False),
        ({"weights": {"a": 33}}, False),
        ({"weights": {"a": 0}}, False),
        ({"weights": {"a": "8"}}, False),
        ({"weights": {"a": True}}, False),
        ({"weights": {"a": 4.5}}, False),
        ({"activations": [8]}, False),
        ({"facts": 3}, False),
        ({"origin": None}, False),
        ({"comment": ""}, False),
    ],
)
def test_schema_and_reader_accept_the_same(changes, valid):
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert jsonschema.Draft202012Validator(schema).is_valid(document(**changes)) is valid
    try:
        PolicyDocument.model_validate(document(**changes))
    except ValidationError:
        assert not valid
    else:
        assert valid


@pytest.mark.parametrize("key", ["format", "version", "weights", "activations"])
def test_schema_and_reader_need_the_same(key):
    incomplete = {k: v for k, v in document().items() if k != key}
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert not jsonschema.Draft202012Validator(schema).is_valid(incomplete)
    with pytest.raises(ValidationError):
        PolicyDocument.model_validate(incomplete)
