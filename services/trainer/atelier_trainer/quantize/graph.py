"""Eight-bit weights in ONNX graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graphs import save_graph, share_equal_nodes, store_half
from .weights import along, quantize_per_channel

INT8 = ".int8"
SCALE = ".scale"
DYNAMIC = ".dynamic"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Layer:
    """A stored weight that may become eight bits: the second operand of a Conv, MatMul or Gemm, or a table of Gather."""

    weight: str
    op: str
    # The axis of the output channels; of a table, the axis of its rows.
    axis: int
    # What its eight bits save against float as it would be stored, float16 where that is exact.
    bytes_saved: int


def load_folded(path: Path) -> onnx.ModelProto:
    """The graph with float16-stored weights in the float32 that their Casts make of them, external data inside."""
    model = onnx.load(str(path))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = _readers(model)
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        source = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None or source.data_type != TensorProto.FLOAT16 or node.attribute[0].i != TensorProto.FLOAT:
            kept.append(node)
            continue
        values = numpy_helper.to_array(source).astype(np.float32)
        folded = numpy_helper.from_array(values, node.output[0])
        if len(readers[source.name]) == 1:
            source.CopyFrom(folded)
        else:  # the float16 is needed elsewhere too
            model.graph.initializer.append(folded)
    _replace_nodes(model, kept)
    return model


def is_quantised(model: onnx.ModelProto) -> bool:
    return any(t.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(t.dims) > 1 for t in model.graph.initializer)


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """Every weight that eight bits make smaller and that each of its readers reads along the same axis."""
    layers = []
    readers = _readers(model)
    for tensor in model.graph.initializer:
        axes = {_output_axis(node, tensor) for node in readers[tensor.name]}
        if tensor.data_type not in FLOATS or len(axes) != 1 or None in axes:
            continue
        axis = axes.pop()
        saved = _bytes_saved(tensor, axis)
        if saved > 0:
            layers.append(Layer(tensor.name, readers[tensor.name][0].op_type, axis, saved))
    return layers


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {tensor.name: [] for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in set(node.input):
            if name in readers:
                readers[name].append(node)
    return readers


def _output_axis(node: onnx.NodeProto, tensor: onnx.TensorProto) -> int | None:
    position = list(node.input).index(tensor.name)
    dimensions = len(tensor.dims)
    if node.op_type == "Conv" and position == 1:
        return 0
    if node.op_type == "MatMul" and position == 1 and dimensions == 2:
        return 1
    if node.op_type == "Gemm" and position == 1:
        return 0 if any(a.name == "transB" and a.i == 1 for a in node.attribute) else 1
    if node.op_type == "Gather" and position == 0 and dimensions == 2:
        return 0
    return None


def _bytes_saved(tensor: onnx.TensorProto, axis: int) -> int:
    values = numpy_helper.to_array(tensor)
    before = onnx.GraphProto(initializer=[tensor])
    half = values.astype(np.float16)
    if values.dtype == np.float32 and np.array_equal(half.astype(np.float32), values):
        before = onnx.GraphProto(initializer=[numpy_helper.from_array(half, f"{tensor.name}.half")])
        before.node.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], name=f"{tensor.name}.cast", to=1))
    tensors, nodes = _in_eight_bits(tensor, axis)
    return before.ByteSize() - onnx.GraphProto(initializer=tensors, node=nodes).ByteSize()


def _in_eight_bits(tensor: onnx.TensorProto, axis: int) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """`tensor` as int8, its scales, and the nodes that make it again.

    A Cast and a Mul, which is what DequantizeLinear without a zero point means: of constants onnxruntime folds them when it
    loads, and then runs as with the float weights. DequantizeLinear itself it keeps and computes anew in every run.
    """
    values = numpy_helper.to_array(tensor)
    steps, scales = quantize_per_channel(values, axis)
    name = tensor.name
    tensors = [
        numpy_helper.from_array(steps, name + INT8),
        numpy_helper.from_array(along(scales, values.ndim, axis).astype(values.dtype), name + SCALE),
    ]
    nodes = [
        helper.make_node("Cast", [name + INT8], [name + ".steps"], to=tensor.data_type),
        helper.make_node("Mul", [name + ".steps", name + SCALE], [name]),
    ]
    return tensors, nodes


def quantize(model: onnx.ModelProto, layers: Iterable[Layer], keep: Collection[str], dynamic: bool) -> onnx.ModelProto:
    """A copy with every layer in eight bits but those whose weight `keep` names.

    `dynamic` gives MatMul and Gemm integer arithmetic: their activations become eight bits at each run, one scale for the
    tensor. Convolutions keep float arithmetic: onnxruntime's integer ones are slower.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    readers = _readers(result)
    made: list[onnx.NodeProto] = []
    integer: dict[str, Layer] = {}
    for layer in layers:
        tensor = stored[layer.weight]
        if layer.weight in keep:
            continue
        if dynamic and is_dynamic(layer, readers[layer.weight]):
            integer |= {node.output[0]: layer for node in readers[layer.weight]}
            tensors = _for_integers(tensor, layer)
        else:
            tensors, nodes = _in_eight_bits(tensor, layer.axis)
            made += nodes
        tensor.CopyFrom(tensors[0])
        result.graph.initializer.append(tensors[1])
    for node in result.graph.node:
        layer = integer.get(node.output[0])
        made += [node] if layer is None else _integer_product(node, layer)
    _replace_nodes(result, made)
    return result


def is_dynamic(layer: Layer, readers: list[onnx.NodeProto]) -> bool:
    """MatMul, and Gemm in the form that linear layers are exported in: x W + b with factors of 1."""
    plain = all(a.name in ("transB", "alpha", "beta") and (a.name == "transB" or a.f == 1) for r in readers for a in r.attribute)
    return layer.op == "MatMul" or (layer.op == "Gemm" and plain)


def _for_integers(tensor: onnx.TensorProto, layer: Layer) -> list[onnx.TensorProto]:
    """The weight as MatMulInteger reads it, [inputs, outputs], and its scales."""
    if tensor.data_type != TensorProto.FLOAT:
        raise ValueError(f"{tensor.name} is float16: dynamic quantisation computes in float32; use --mode weight-only")
    steps, scales = quantize_per_channel(numpy_helper.to_array(tensor), layer.axis)
    steps = np.ascontiguousarray(steps if layer.axis == 1 else steps.T)
    return [numpy_helper.from_array(steps, layer.weight + INT8), numpy_helper.from_array(scales, layer.weight + SCALE)]


def _integer_product(node: onnx.NodeProto, layer: Layer) -> list[onnx.NodeProto]:
    """`x W (+ b)` as integers: DynamicQuantizeLinear, MatMulInteger, and the scales of both, which onnxruntime fuses."""
    (x, _, *bias), (y,) = node.input, node.output
    product = f"{y}.product" if bias else y
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [x], [f"{y}.steps", f"{y}.scale", f"{y}.zero"]),
        helper.make_node("MatMulInteger", [f"{y}.steps", layer.weight + INT8, f"{y}.zero"], [f"{y}.sum"], name=node.name),
        helper.make_node("Cast", [f"{y}.sum"], [f"{y}.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{y}.scale", layer.weight + SCALE], [f"{y}.scales"]),
        helper.make_node("Mul", [f"{y}.float", f"{y}.scales"], [product]),
    ]
    return [*nodes, helper.make_node("Add", [product, *bias], [y])] if bias else nodes


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def with_float_weights_as_inputs(model: onnx.ModelProto, layers: Iterable[Layer], dynamic: bool) -> onnx.ModelProto:
    """A copy that is fed the layers' weights, so that one session measures them all.

    With `dynamic`, each MatMul and Gemm also gets a bool input, "WEIGHT.dynamic": whether its activations are rounded to
    eight bits on the way in, which is what integer arithmetic does to them.
    """
    fed = {layer.weight: layer for layer in layers}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    readers = _readers(result)
    for tensor in [tensor for tensor in result.graph.initializer if tensor.name in fed]:
        result.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        result.graph.initializer.remove(tensor)
    nodes = []
    switches = {node.output[0]: layer for layer in fed.values() if dynamic and is_dynamic(layer, readers[layer.weight])
                for node in readers[layer.weight]}
    for weight in {layer.weight for layer in switches.values()}:
        result.graph.input.append(helper.make_tensor_value_info(weight + DYNAMIC, TensorProto.BOOL, []))
    for node in result.graph.node:
        layer = switches.get(node.output[0])
        if layer is not None:
            x, y = node.input[0], node.output[0]
            steps = [f"{y}.steps", f"{y}.scale", f"{y}.zero"]
            nodes += [
                helper.make_node("DynamicQuantizeLinear", [x], steps),
                helper.make_node("DequantizeLinear", steps, [f"{y}.rounded"]),
                helper.make_node("Where", [layer.weight + DYNAMIC, f"{y}.rounded", x], [f"{y}.x"]),
            ]
            node.input[0] = f"{y}.x"
        nodes.append(node)
    _replace_nodes(result, nodes)
    return result


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes the graph as small as it gets: what is still float as float16 where that is exact."""
    store_half(model)
    share_equal_nodes(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_graph(model, path, external_data=False)
