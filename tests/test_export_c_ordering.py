"""Where codes lie: channel-last, and what a reshape does to its readers."""

from __future__ import annotations

import shutil

import networkx as nx
import numpy as np
import pytest

from ddq_search.discrete import DiscreteNetwork, LayerNumbers
from ddq_search.errors import ExportError
from ddq_search.export.c.ordering import Reorder, memory_strides, natural_order, order_tensors
from ddq_search.graph import Operation
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from ddq_search.precision import ActivationGrid
from tests.c_projects import CompiledRuntime, random_codes, runtime_sources, written
from tests.networks import random_network

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler 'cc'")


def network_of(*operations, bits=8):
    """A network of (name, kind, inputs, shape, attributes); weighted layers get codes 1, 2, 3, …"""
    graph, layers, shapes = nx.MultiDiGraph(), {}, {}
    for name, kind, inputs, shape, *rest in operations:
        attributes = dict(rest[0]) if rest else {}
        weights = attributes.pop("weights", None)
        module = attributes.pop("module", name)
        sources = tuple(shapes[source] for source in inputs)
        op = Operation(name, kind, sources, shape, attributes, module=module, weights=int(np.prod(weights or 0)))
        graph.add_node(name, operation=op)
        graph.add_edges_from((source, name, key) for key, source in enumerate(inputs))
        shapes[name] = shape
        if weights:
            codes = np.arange(1, np.prod(weights) + 1, dtype=np.int32).reshape(weights) % 100
            one = np.ones(weights[0])
            layers[name] = LayerNumbers(codes, 8, one / 64, one, 0 * one)
    grid = ActivationGrid(0.5, 1, bits)
    return DiscreteNetwork(graph, {"weights/all": 8}, layers, dict.fromkeys(shapes, grid))


FLATTEN = (("input", "input", (), (2, 2, 3)), ("flat", "reshape", ("input",), (12,)))


def test_images_lie_channel_last():
    assert natural_order((2, 2, 2)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert natural_order((2, 1, 2, 1)).tolist() == natural_order((2, 2, 1)).tolist()  # two channel dimensions
    assert natural_order((4,)).tolist() == [0, 1, 2, 3]
    for shape in ((3, 4, 5), (2, 3, 4, 5), (6,), (3, 7)):
        index = np.stack(np.unravel_index(natural_order(shape), shape))
        assert (np.array(memory_strides(shape)) @ index).tolist() == list(range(int(np.prod(shape))))


def test_a_linear_layer_takes_its_columns_in_the_order_of_the_image():
    program = lower(network_of(*FLATTEN, ("fc", "linear", ("flat",), (2,), {"weights": (2, 12)}),
                               ("output", "output", ("fc",), (2,))), "single")  # fmt: skip
    ordering = order_tensors(program)
    assert ordering.columns["fc"].tolist() == natural_order((2, 2, 3)).tolist()
    assert not ordering.reorders


def test_a_flattened_image_that_is_read_in_order_moves_within_its_buffer():
    program = lower(network_of(*FLATTEN, ("output", "output", ("flat",), (12,))), "single")
    ordering = order_tensors(program)
    assert ordering.reorders == {"output": (Reorder("flat", (2, 2, 3), (12,)),)}
    assert ordering.written == {"input": (2, 2, 3), "flat": (2, 2, 3), "output": (12,)}


def test_a_channel_shuffle_moves_only_where_it_transposes():
    ordering = order_tensors(lower(random_network("Shuffle", 0)[0], "single"))
    assert not ordering.reorders


SHARED = (
    *FLATTEN,
    ("first", "linear", ("flat",), (2,), {"weights": (2, 12), "module": "fc"}),
    ("turned", "transpose", ("input",), (3, 2, 2), {"dims": (2, 0, 1)}),
    ("line", "reshape", ("turned",), (12,)),
    ("second", "linear", ("line",), (2,), {"weights": (2, 12), "module": "fc"}),
    ("sum", "concat", ("first", "second"), (4,), {"dim": 0}),
    ("output", "output", ("sum",), (4,)),
)
"""One linear module over an image flattened from two shapes."""

ALL_VIEWS = (
    ("input", "input", (), (4, 3, 2)),
    ("halves", "reshape", ("input",), (2, 12)),
    ("turned", "transpose", ("halves",), (12, 2), {"dims": (1, 0)}),
    ("image", "reshape", ("turned",), (2, 3, 4)),
    ("conv", "conv2d", ("image",), (3, 2, 3), {
        "weights": (3, 2, 2, 2), "kernel_size": (2, 2), "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1),
        "groups": 1,
    }),
    ("back", "reshape", ("image",), (4, 3, 2)),
    ("kept", "slice", ("back",), (4, 3, 1), {"dim": 2, "start": 1, "stop": 2}),
    ("output", "output", ("kept",), (4, 3, 1)),
)  # fmt: skip
"""A buffer that is read as an image, then in another order."""


def test_a_shared_linear_layer_keeps_one_set_of_columns_and_moves_the_other_input():
    ordering = order_tensors(lower(network_of(*SHARED), "single"))
    assert ordering.columns["first"].tolist() == ordering.columns["second"].tolist()
    assert ordering.reorders == {"second": (Reorder("line", (3, 2, 2), (2, 2, 3)),)}


def test_a_buffer_moves_before_every_reader_that_needs_another_order():
    ordering = order_tensors(lower(network_of(*ALL_VIEWS), "single"))
    assert ordering.reorders == {
        "turned": (Reorder("halves", (4, 3, 2), (2, 12)),),
        "conv": (Reorder("image", (12, 2), (2, 3, 4)),),
        "kept": (Reorder("back", (2, 3, 4), (4, 3, 2)),),
    }


@needs_compiler
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("operations", [(*FLATTEN, ("output", "output", ("flat",), (12,))), SHARED, ALL_VIEWS])
def test_moved_codes_are_the_executors(tmp_path, operations, bits):
    network = network_of(*operations, bits=bits)
    program = lower(network, "single")
    project = written(network, program, tmp_path / "c")
    inputs = random_codes(program, 5, bits)
    found = CompiledRuntime(tmp_path, runtime_sources(portable_only=True)).codes(project, program, inputs)
    for name, codes in executor.run(program, inputs).items():
        np.testing.assert_array_equal(found[name], codes, err_msg=name)


def test_more_dimensions_than_the_operations_move_are_refused():
    shape = (1, 2, 1, 2, 1, 3, 1)
    network = network_of(FLATTEN[0], ("deep", "reshape", ("input",), shape), ("output", "output", ("deep",), shape))
    with pytest.raises(ExportError, match=r"'deep': the C export moves at most 6 dimensions"):
        order_tensors(lower(network, "single"))
