"""A model's weights in a SavedModel, in as few bits as wanted.

What is stored in fewer bits is expanded once, when a server loads the model: it then
computes as fast as ever, and only the files are small.
"""

import keras
import tensorflow as tf

from keras_gpt.model import GPT


class StoredWeights:
    """Weights that TensorFlow stores, and the float tensors that a graph reads.

    Args:
        model: A `GPT` on the TensorFlow backend, quantized or not.
        weights: `"float32"`, `"bfloat16"`, `"int8"`, or `None` for what the model
            keeps them in.

    Attributes:
        kind: What the weights are stored in, as it is shown.
        model: A `GPT` that isn't quantized; `read` gives the values for it.
        stored: By name, the variables of each weight: its values, perhaps its scales.
        expanded: By name, what a server computes from them as it loads.
    """

    def __init__(self, model, weights=None):
        if model.quantization not in (None, "int8"):
            raise ValueError(
                "A SavedModel has weights in float32, bfloat16 or int8. Received: a "
                f"model whose weights are {model.quantization}. Load it without "
                "quantizing it, and give weights='int8'."
            )
        self.kind = weights or model.quantization or model.variable_dtype
        if weights == "int8" and model.quantization is None:
            model = _quantized(model)
        self.model = model
        if model.quantization is not None:
            self.model = _make_like(model)
        stored = {variable.path: variable for variable in model.weights}
        self.stored = {}
        self.expanded = {}
        for variable in self.model.weights:
            path, dtype = variable.path, variable.dtype
            values = tf.convert_to_tensor(stored[path].value)
            scale = stored.get(f"{path}_scale")
            name = _name(variable)
            if scale is None and weights != "int8" and values.shape.rank > 1:
                values = tf.cast(values, weights or values.dtype)
            self.stored[name] = [tf.Variable(values, trainable=False, name=name)]
            if scale is not None:
                scale = tf.Variable(scale.value, trainable=False, name=f"{name}_scale")
                self.stored[name].append(scale)
            if self.stored[name][0].dtype.name != dtype:
                self.expanded[name] = _ExpandedWeight(name, self.stored[name], dtype)

    def read(self):
        """Give the weights to what is called within.

        Returns:
            A context manager: within, `model` computes with the stored weights.
        """
        mapping = []
        for variable in self.model.weights:
            name = _name(variable)
            source = self.expanded.get(name)
            value = source.read() if source else self.stored[name][0].read_value()
            mapping.append((variable, value))
        return keras.StatelessScope(state_mapping=mapping)


class _ExpandedWeight(tf.saved_model.experimental.TrackableResource):
    """A weight that is computed from what is stored, after that has been loaded."""

    def __init__(self, name, stored, dtype):
        super().__init__()
        self._name = name
        self._stored = stored
        self._dtype = dtype
        self._initialize()

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(
            dtype=self._dtype,
            shape=self._stored[0].shape,
            shared_name=f"expanded_{self._name}",
        )

    def _initialize(self):
        tf.raw_ops.AssignVariableOp(
            resource=self.resource_handle, value=_expand(self._stored, self._dtype)
        )

    def _destroy_resource(self):
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle)

    def read(self):
        value = tf.raw_ops.ReadVariableOp(
            resource=self.resource_handle, dtype=self._dtype
        )
        value.set_shape(self._stored[0].shape)
        return value


def _name(variable):
    return variable.path.replace("/", "_")


def _expand(stored, dtype):
    """Float values of a weight that is stored alone, or as int8 with its scales."""
    values = tf.cast(stored[0], dtype)
    if len(stored) == 1:
        return values
    scale = tf.cast(stored[1], dtype)
    # embeddings have a scale for each row, other matrices for each column
    is_by_row = stored[0].name.startswith("embedding_") and (
        not stored[0].name.startswith("embedding_tokens_reverse")
    )
    return values / (scale[:, None] if is_by_row else scale)


def _make_like(model):
    """A model of the same shape, with the same adapters, that isn't quantized."""
    copy = GPT(model.config, dtype=model.dtype_policy, initial_weights=False)
    if model.adapters.ranks:
        copy.add_adapters(model.adapters.ranks, model.adapters.targets)
    return copy


def _quantized(model):
    copy = _make_like(model)
    copy.set_weights(model.get_weights())
    copy.quantize("int8")
    return copy
