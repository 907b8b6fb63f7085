"""The table of methods: every row is a configuration, figures by hand, cells that are there are not run again."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace

import pytest

from ddq_search.methods import quantizers_of


@pytest.fixture(scope="module")
def table(repository):
    spec = importlib.util.spec_from_file_location("methods_table", repository / "benchmarks" / "methods" / "table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["methods_table"]


def test_every_row_is_a_configuration_and_every_pair_has_rows(table):
    arguments = Namespace(model="resnet8", data="digits", set=[])
    methods = set()
    for row, settings in table.ROWS.items():
        config = table._config(arguments, settings, 3)
        assert quantizers_of(config).weights, row
        assert config.seed == 3
        methods.add(config.search.method)
    assert methods >= {"lsq-uniform", "dq", "ddq", "edmips", "bayesian-bits", "fracbits", "ilp", "dqss"}
    assert {name for pair in table.PAIRS for name in pair} <= {*table.ROWS, "float"}


def cell(row, seed, test, float_test=90.0):
    return {"row": row, "seed": seed, "test": test, "float_test": float_test}


def test_paired_differences_and_intervals_by_hand(table):
    ours, theirs = table.PAIRS[0]
    cells = [cell(ours, seed, test) for seed, test in ((0, 81.0), (1, 84.0), (2, 84.0), (3, 70.0))]
    cells += [cell(theirs, seed, test) for seed, test in ((0, 80.0), (1, 82.0), (2, 81.0))]
    found = table.summary(cells)
    difference = next(entry for entry in found["differences"] if (entry["ours"], entry["theirs"]) == (ours, theirs))
    # differences 1, 2, 3 of the seeds that both have: mean 2, s = 1, t(0.975, 2) = 4.303
    assert (difference["seeds"], difference["mean"]) == (3, 2.0)
    assert difference["half_width"] == pytest.approx(4.303 / 3**0.5, abs=2e-3)
    assert {row["row"]: row["test_mean"] for row in found["rows"]} == {ours: 79.75, theirs: 81.0, "float": 90.0}
    single = table.summary(cells[:1] + cells[4:5])["differences"][0]
    assert (single["mean"], single["half_width"]) == (1.0, None)


def test_finished_cells_are_read_and_only_missing_ones_run(table, tmp_path, monkeypatch, capsys):
    ran = []

    def fake(arguments, keep, row, seed):
        ran.append((row, seed))
        return {**cell(row, seed, 80.0 + seed), "seconds": 1.0}

    monkeypatch.setattr(table, "_cell", fake)
    rows = ["lsq 2/32", "ddq w2.14 a4"]
    options = ["table.py", "--keep", str(tmp_path), "--rows", *rows, "--out", str(tmp_path / "out.json")]
    for seeds, expected in ((["0"], 2), (["0", "1"], 2), (["1"], 0)):
        ran.clear()
        monkeypatch.setattr(sys, "argv", [*options, "--seeds", *seeds])
        table.main()
        assert len(ran) == expected
    document = json.loads((tmp_path / "out.json").read_text())
    assert [found["seed"] for found in document["cells"]] == [1, 1]
    assert "lsq 2/32" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*options, "--seeds", "1", "--set", "training.joint_epochs=3"])
    with pytest.raises(SystemExit, match=r"lsq_2-32-1.json is a cell of another configuration"):
        table.main()


def test_uniform_lsq_is_lsq_unless_asked_otherwise(table):
    arguments = Namespace(model="resnet8", data="digits", set=[])
    found = {row: quantizers_of(table._config(arguments, table.ROWS[row], 0)) for row in ("lsq 4/4", "uniform 4/4")}
    assert (found["lsq 4/4"].weights, found["lsq 4/4"].activations) == (("lsq",), ("lsq",))
    assert (found["uniform 4/4"].weights, found["uniform 4/4"].activations) == (("uniform",), ("uniform",))
