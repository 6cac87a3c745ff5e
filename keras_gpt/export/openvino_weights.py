"""A graph's weights in fewer bits, which OpenVINO multiplies with as they are."""

# Axes: o output, i input, n group of inputs, g place in a group

import numpy as np
import openvino
from openvino import opset13

from keras_gpt.layers.linear import GROUP_SIZE, group_scale


def compress_weights(graph: openvino.Model, weights: str) -> None:
    """Replace the matrices of a graph by those that are expanded as they are read.

    Args:
        graph: What `build_graph` made.
        weights: `"float32"`; `"int8"`, with a scale for each output; or `"int4"`, with
            a scale and a minimum for each `GROUP_SIZE` inputs of an output. The output
            projection, which the loss feels most, and matrices that have no such groups
            are int8 then.
    """
    last = graph.outputs[0].get_node().input_value(0).get_node()
    for product in graph.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        source = product.input_value(1)
        is_by_output = product.get_attributes()["transpose_b"]
        if source.get_node().get_type_name() == "Transpose":  # the token embedding
            source, is_by_output = source.get_node().input_value(0), True
        if source.get_node().get_type_name() != "Constant":
            continue
        values = source.get_node().data
        values = np.ascontiguousarray(values if is_by_output else values.T)  # (o, i)
        can_group = values.shape[1] % GROUP_SIZE == 0
        if weights == "float32":
            stored = opset13.constant(values)
        elif weights == "int4" and can_group and product != last:
            stored = store_int4(values)
        else:
            stored = _store_int8(values)
        new = opset13.matmul(product.input_value(0), stored.output(0), False, True)
        replace(product.output(0), new.output(0))
        replace(source, stored.output(0))  # the look-up of tokens may read it too
    graph.outputs[0].set_names({"logits"})
    graph.validate_nodes_and_infer_types()


def replace(old: openvino.Output, new: openvino.Output) -> None:
    """Let all that read one output read another."""
    for target in list(old.get_target_inputs()):
        target.replace_source_output(new)


def _store_int8(values):
    """Symmetric, with a scale for each output."""
    scale = _as_float16(np.abs(values).max(axis=1, keepdims=True) / 127)
    stored = np.rint(values / scale).clip(-127, 127).astype("int8")
    expanded = opset13.convert(opset13.constant(stored), openvino.Type.f16)
    expanded = opset13.multiply(expanded, opset13.constant(scale.astype("float16")))
    return opset13.convert(expanded, openvino.Type.f32)


def store_int4(values: np.ndarray) -> openvino.Node:
    """From the minimum to the maximum of each group, in 15 steps.

    So Q4_1 does it: weights that were read from it are stored without loss.
    """
    o, i = values.shape
    groups = values.reshape(o, i // GROUP_SIZE, GROUP_SIZE)  # (o, n, g)
    least, largest = (f(groups, axis=2, keepdims=True) for f in (np.min, np.max))
    scale = _as_float16(group_scale(least, largest))
    zero = (-least / scale).astype("float16")
    stored = np.rint(groups / scale + zero).clip(0, 15).astype("uint8")
    stored = opset13.constant(stored, openvino.Type.u4)
    expanded = opset13.convert(stored, openvino.Type.f16)
    expanded = opset13.subtract(expanded, opset13.constant(zero))
    expanded = opset13.multiply(expanded, opset13.constant(scale.astype("float16")))
    expanded = opset13.reshape(expanded, np.array([o, i]), False)
    return opset13.convert(expanded, openvino.Type.f32)


def _as_float16(scale):
    """The nearest of float16, and none that is 0, as float32."""
    least = np.finfo("float16").smallest_subnormal
    return np.maximum(scale, least).astype("float16").astype("float32")
