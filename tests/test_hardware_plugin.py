"""Cost models of users: found by entry point, held to the public contract, refused with their name."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from ddq_search.cost import LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.errors import CostError
from ddq_search.graph import ModelGraph, Operation
from ddq_search.layer_shape import layer_shape
from ddq_search.space import SearchSpace, build_space
from hardware_models import list_profiles, plugin
from hardware_models.contract import check, example_graphs
from hardware_models.devices import find_device
from hardware_models.plugin import OperationCostModel


class MyBoard(OperationCostModel):
    """A nanosecond per product of 8 bits, slower at 4; 10 us per call."""

    name = "my-board"
    weight_bits = (4, 8)

    def latency_s(self, op: Operation, weight_bits: int | None, input_bits: tuple[int, ...], output_bits: int) -> float:
        per_mac = {None: 0.0, 8: 1e-9, 4: 1.5e-9}[weight_bits]
        return 1e-5 + op.macs * per_mac

    def scratch_bytes(self, op: Operation, weight_bits: int, input_bits: int) -> int:
        return 2 * layer_shape(op).row_length


class Broken(MyBoard):
    def latency_s(self, op: Operation, weight_bits: int | None, input_bits: tuple[int, ...], output_bits: int) -> float:
        return float("nan")


def point(value: str) -> EntryPoint:
    return EntryPoint("my-board", value, plugin.GROUP)


@pytest.mark.parametrize("name", example_graphs())
def test_my_board_keeps_the_contract(name: str) -> None:
    check(MyBoard(), example_graphs()[name])


@pytest.mark.parametrize("device", list_profiles())
@pytest.mark.parametrize("name", example_graphs())
def test_every_shipped_device_keeps_the_contract(name: str, device: str) -> None:
    check(find_device(device), example_graphs()[name])


def test_prices_by_hand() -> None:
    graph = example_graphs()["perceptron"]
    board = MyBoard()
    space = build_space(graph, board)
    tables = CostTables(space, board.factors(graph, space))
    bits = {v.name: 4 if v.name == "weights/0" else v.candidates[-1] for v in space.variables}
    assert tables.price(bits)[LATENCY] == pytest.approx(2e-5 + 84 * 1.5e-9 + 21e-9, rel=1e-12)
    assert board.plan(graph, space, bits).sizes["scratch/0"] == 32  # 24 bytes, aligned


def test_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "registered", lambda: {"my-board": point(f"{__name__}:MyBoard")})
    assert find_device("my-board").name == "my-board"
    with pytest.raises(CostError, match=r"states its own threads"):
        find_device("my-board", threads=4)


@pytest.mark.parametrize(
    ("value", "message"),
    [("no_such_module:X", "my-board.*cannot be loaded"), ("builtins:dict", "my-board.*lacks name, arithmetic")],
)
def test_what_cannot_be_loaded_is_named(value: str, message: str) -> None:
    with pytest.raises(CostError, match=message):
        plugin.load(point(value))


def test_a_price_that_is_no_number_names_the_operation() -> None:
    graph = example_graphs()["perceptron"]
    with pytest.raises(CostError, match=r"'0' \(linear\): my-board prices .* at nan seconds"):
        Broken().factors(graph, build_space(graph, Broken()))


class Free(MyBoard):
    """Forgets the latency of every operation but the first."""

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        found = super().factors(graph, space)
        return [factor for factor in found if factor.cost != LATENCY or factor.operation == "input"]


class Boastful(MyBoard):
    calibration = "perfect"


class Swollen(MyBoard):
    """Plans twice the arena it prices."""

    def arena_bytes(self, graph: ModelGraph, space: SearchSpace, choices: object) -> int:
        return 2 * super().arena_bytes(graph, space, choices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [(Free, "without a latency"), (Boastful, "calibration must be one line"), (Swollen, "for a priced peak of")],
)
def test_the_contract_can_be_broken(model: type[MyBoard], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(model(), example_graphs()["unusual"])


def test_peak_ram_includes_scratch() -> None:
    graph = example_graphs()["unusual"]
    space = build_space(graph, MyBoard())
    parts = {f.part for f in MyBoard().factors(graph, space) if f.cost == PEAK_RAM}
    assert parts == {"tensor", "scratch"}
