"""One operator in LiteRT's reference kernels, from a file written by hand: the oracle of the arithmetic ``tflite``."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

flatbuffers = pytest.importorskip("flatbuffers", reason="needs flatbuffers to write TFLite files")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="needs LiteRT, whose kernels are the oracle")
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs LiteRT, whose kernels are the oracle")


def litert(operator, version, codes, grids, shape, output, options=None, constants=(), axis=0):
    """Runs one operator on unsigned codes ``[1, ...]`` (channel-last); returns its codes, None where it is refused.

    Args:
        operator: name in ``BuiltinOperator``.
        version: version of the operator.
        codes: one array per input.
        grids: one grid per input; 16 bits go in int16, others in int8.
        shape: shape of the output.
        output: grid of the output.
        options: the operator's options table.
        constants: ``(array, scales)`` of further inputs; scales None for plain numbers.
        axis: dimension of a constant that its scales belong to.
    """
    model, graph, op = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.buffers = 3, [schema.BufferT()]
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version, model.operatorCodes = version, [code]
    graph.tensors = [_tensor(f"x{i}", x.shape, grid) for i, (x, grid) in enumerate(zip(codes, grids, strict=True))]
    graph.inputs = list(range(len(codes)))
    for array, scales in constants:
        graph.tensors.append(_constant(f"c{len(graph.tensors)}", array, scales, len(model.buffers), axis))
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        model.buffers.append(buffer)
    op.inputs, op.outputs = list(range(len(graph.tensors))), [len(graph.tensors)]
    graph.outputs = op.outputs
    graph.tensors.append(_tensor("y", shape, output))
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        op.builtinOptions, op.builtinOptionsType = options, getattr(schema.BuiltinOptions, kind)
    graph.operators, model.subgraphs = [op], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = interpreter.Interpreter(
            model_content=bytes(builder.Output()),
            experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF,
            num_threads=1,
        )
    try:
        run.allocate_tensors()
    except RuntimeError:
        return None
    for details, x, grid in zip(run.get_input_details(), codes, grids, strict=True):
        run.set_tensor(details["index"], (x.astype(int) - _zero(grid)).astype(details["dtype"]))
    run.invoke()
    return run.get_tensor(run.get_output_details()[0]["index"]).astype(int) + _zero(output)


def _zero(grid):
    """The code that is zero in the signed container."""
    return 2**15 if grid.bits == 16 else 128


def _tensor(name, shape, grid):
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
    tensor.type = schema.TensorType.INT16 if grid.bits == 16 else schema.TensorType.INT8
    tensor.quantization = _quantization([grid.scale], [grid.zero_point - _zero(grid)])
    return tensor


def _constant(name, array, scales, buffer, axis):
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, list(array.shape), buffer
    tensor.type = getattr(schema.TensorType, array.dtype.name.upper())
    if scales is not None:
        tensor.quantization = _quantization(scales, np.zeros(len(scales)))
        tensor.quantization.quantizedDimension = axis
    return tensor


def _quantization(scales, zero_points):
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.float32(scales), np.int64(zero_points)
    return quantization
