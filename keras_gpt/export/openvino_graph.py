"""A GPT's decode step as an OpenVINO graph that keeps the cache as its state.

It is `GPT.decode` itself, on Keras's OpenVINO backend. The inputs and the output are
those of `openvino_genai`.
"""

# Axes: b batch, t new position, s cache position

from pathlib import Path

import keras
import numpy as np
import openvino
from openvino import opset13

from keras_gpt.export.openvino_weights import compress_weights, replace
from keras_gpt.language_model import LanguageModel
from keras_gpt.model import GPT


def write_graph(lm: LanguageModel, path: Path, weights: str) -> None:
    """Write the graph of a language model.

    Args:
        lm: A `LanguageModel` on the OpenVINO backend.
        path: Of the graph's `.xml`; its weights go into a `.bin` beside it.
        weights: As of `compress_weights`.
    """
    graph = build_graph(lm.model)
    compress_weights(graph, weights)
    openvino.save_model(graph, path, compress_to_fp16=False)


def build_graph(model: GPT) -> openvino.Model:
    """Make the graph, in float32.

    Args:
        model: A `GPT` on the OpenVINO backend.

    Returns:
        From `input_ids`, `attention_mask` and `position_ids`, `(b, t)` but for the mask
        `(b, s)`, and `beam_idx` `(b,)`, the rows that the cache takes over, to `logits`
        `(b, t, v)`. The cache grows by each call; a row that is shorter than others is
        padded on the left.
    """
    inputs = {
        name: _name(opset13.parameter([-1, -1], openvino.Type.i64), name)
        for name in ("input_ids", "attention_mask", "position_ids")
    }
    inputs["beam_idx"] = _name(opset13.parameter([-1], openvino.Type.i32), "beam_idx")
    token_ids, position = (
        opset13.convert(inputs[name], openvino.Type.i32)
        for name in ("input_ids", "position_ids")
    )
    caches = _read_caches(model.config, inputs["input_ids"], inputs["beam_idx"])
    # the places in the cache of the new tokens: the same in each row
    before = _size(next(iter(caches.values())), 2)
    after = opset13.add(before, _size(token_ids, 1))
    place = opset13.range(before, after, np.int32(1), openvino.Type.i32)
    place = opset13.unsqueeze(place, np.int64(0))  # (1, t)
    logits, new = _decode(model, token_ids, position, place, caches)
    sinks = [
        opset13.assign(part.output.get_node(), name)
        for name, part in zip(caches, new, strict=True)
    ]
    result = opset13.result(_name(logits.output.get_node(), "logits"))
    graph = openvino.Model([result], sinks, list(inputs.values()), "gpt")
    _drop_conversions(graph)
    _share_cache_length(graph)
    _turn_by_heads(graph)
    graph.validate_nodes_and_infer_types()
    return graph


def _decode(model, token_ids, position, place, caches):
    """Logits `(b, t, v)`, and what the caches of all layers become."""
    # padding is for a row what another document is: it starts behind it
    start = opset13.subtract(place, position)  # (b, t)
    token_ids, position, place, start = (
        _tensor(node) for node in (token_ids, position, place, start)
    )
    parts = map(_tensor, caches.values())
    new = []

    def run(block, x, angles, segment_ids):
        cache = (next(parts), next(parts))
        x, cache = block.decode(x, cache, place, angles, start)
        new.extend(cache)
        return x, None

    x, _ = model._read(token_ids, run, position)
    return model.logits(model.final_norm(x)), new


def _read_caches(config, token_ids, beam_idx):
    """Keys and values of each layer by the names of their states, `(b, k, s, h)`."""
    k, h = config.kv_heads, config.head_dimension
    batch = opset13.unsqueeze(_size(token_ids, 0), np.int64(0))
    shape = opset13.concat([batch, np.array([k, 0, h], "int32")], 0)
    empty = opset13.broadcast(np.float32(0), shape)
    caches = {}
    for layer in range(config.num_layers):
        for part in ("key", "value"):
            # as optimum-intel names them, and openvino_genai expects
            name = f"past_key_values.{layer}.{part}present.{layer}.{part}"
            state = opset13.read_value(empty, name, openvino.Type.f32, [-1, k, -1, h])
            caches[name] = opset13.gather(state, beam_idx, np.int64(0))
    return caches


def _size(node, axis):
    """An axis's length, an int32 scalar."""
    shape = opset13.shape_of(node, openvino.Type.i32)
    return opset13.gather(shape, np.int32(axis), np.int32(0))


def _tensor(node):
    return keras.ops.convert_to_tensor(node.output(0))


def _name(node, name):
    node.set_friendly_name(name)
    node.output(0).set_names({name})
    return node


def _drop_conversions(graph):
    """Drop those to the same type, which Keras puts before each operation."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Convert" and (
            node.get_output_element_type(0) == node.get_input_element_type(0)
        ):
            replace(node.output(0), node.input_value(0))


def _share_cache_length(graph):
    """Let all layers ask for the length of one cache: all masks are then the same.

    The runtime computes what is the same once, and its pattern of attention allows
    no others to use the caches.
    """
    caches = [sink.input_value(0) for sink in graph.get_sinks()]
    shapes = [
        target.get_node().output(0)
        for cache in caches
        for target in cache.get_target_inputs()
        if target.get_node().get_type_name() == "ShapeOf"
    ]
    for shape in shapes[1:]:
        replace(shape, shapes[0])


def _turn_by_heads(graph):
    """Turn queries and keys by themselves and with the heads before the positions.

    So written, `apply_rotary` is one operation of the runtime's.
    """
    turned = {}
    for node in graph.get_ordered_ops():
        parts = [source.get_node() for source in node.input_values()]
        if [part.get_type_name() for part in parts] != ["Subtract", "Add"]:
            continue
        if node.get_type_name() != "Concat":
            continue
        first, cos = parts[0].input_value(0).get_node().input_values()
        sin = parts[0].input_value(1).get_node().input_value(1)
        x = first.get_node().input_value(0)  # (b, t, n + k, h)
        if not turned:  # the angles of all layers
            turned = {"cos": _heads_first(cos), "sin": _heads_first(sin)}
        targets = [target.get_node() for target in node.output(0).get_target_inputs()]
        (split,) = (n for n in targets if n.get_type_name() == "VariadicSplit")
        # into queries and keys
        parts = opset13.variadic_split(x, *split.input_values()[1:]).outputs()
        for old, heads in zip(split.outputs(), parts, strict=True):
            (transposed,) = old.get_target_inputs()
            new = _turn(_heads_first(heads), **turned)
            replace(transposed.get_node().output(0), new.output(0))


def _turn(x, cos, sin):
    """As `apply_rotary`, in the form that the runtime knows."""
    half = x.get_output_partial_shape(0)[3].get_length() // 2
    first, second = opset13.variadic_split(x, np.int64(-1), [half, half]).outputs()
    less = opset13.multiply(opset13.multiply(second, sin), np.float32(-1))
    pair = (
        opset13.add(opset13.multiply(first, cos), less),
        opset13.add(opset13.multiply(second, cos), opset13.multiply(first, sin)),
    )
    return opset13.concat(pair, -1)


def _heads_first(x):
    return opset13.transpose(x, np.array([0, 2, 1, 3]))
