"""Predict in the serving double: the checks of TF Serving's RunPredict, and the run."""

import numpy as np

from tests.serving.capi import DTYPES, STRING, Signature, StatusError
from tests.serving.protos import predict_pb2, tensor_pb2

DEFAULT_SIGNATURE = "serving_default"
_FIELDS = {  # the repeated field of TensorProto for each dtype
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "uint8": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "object": "string_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}


def to_array(proto: tensor_pb2.TensorProto, name: str = "") -> np.ndarray:
    """The values of a TensorProto.

    Raises:
        StatusError: They don't fit its shape.
    """
    shape = [dim.size for dim in proto.tensor_shape.dim]
    size = int(np.prod(shape, dtype=int))
    dtype = DTYPES.get(proto.dtype)
    if dtype is None or min(shape, default=0) < 0:
        raise StatusError("INVALID_ARGUMENT", f"tensor parsing error: {name}")
    if proto.tensor_content and proto.dtype != STRING:
        values = np.frombuffer(proto.tensor_content, dtype)
    else:
        values = np.array(list(getattr(proto, _FIELDS[dtype])), dtype)
        if 0 < len(values) < size:  # the last value stands for the rest
            values = np.append(values, np.repeat(values[-1:], size - len(values)))
        elif len(values) == 0 and size:
            values = np.full(size, b"" if proto.dtype == STRING else 0, dtype)
    if len(values) != size:
        raise StatusError("INVALID_ARGUMENT", f"tensor parsing error: {name}")
    return values.reshape(shape)


def to_proto(array: np.ndarray, dtype: int) -> tensor_pb2.TensorProto:
    """A TensorProto with the values in its fields, as the server answers by default."""
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, _FIELDS[DTYPES[dtype]]).extend(array.ravel().tolist())
    return proto


def predict(
    models, request: predict_pb2.PredictRequest, timeout_ms: int | None
) -> predict_pb2.PredictResponse:
    """Answer a request.

    Args:
        models: `Models`.
        request: The request.
        timeout_ms: After that long it is cancelled.

    Raises:
        StatusError: What the server answers.
    """
    with models.use(request.model_spec) as version:
        response = run_predict(version, request, timeout_ms)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        return response


def run_predict(
    version, request: predict_pb2.PredictRequest, timeout_ms: int | None = None
) -> predict_pb2.PredictResponse:
    """Answer a request with a version that is loaded, available or not yet."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = version.model.signatures.get(name)
    if signature is None:
        raise StatusError(
            "FAILED_PRECONDITION", f'Serving signature key "{name}" not found.'
        )
    inputs = _check_inputs(signature, request.inputs)
    outputs = _check_outputs(signature, request.output_filter)
    runner = version.batcher or version.model
    results = runner.run(name, inputs, outputs, timeout_ms)
    response = predict_pb2.PredictResponse()
    response.model_spec.signature_name = name
    for output in outputs:
        proto = to_proto(results[output], signature.outputs[output].dtype)
        response.outputs[output].CopyFrom(proto)
    return response


def _join(names) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _check_inputs(signature: Signature, protos) -> dict[str, np.ndarray]:
    """The inputs as arrays. Defaults of signatures aren't part of the double."""
    sent, wanted = set(protos), set(signature.inputs)
    if len(sent) != len(wanted):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_join(sent)}) != len({_join(wanted)}). Sent extra: "
            f"{_join(sent - wanted)}. Missing but required: {_join(wanted - sent)}.",
        )
    for name in sorted(wanted - sent):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Signature input alias: {name}(feed name: {signature.inputs[name].name}) "
            "not found in request and no default value provided. Inputs expected to "
            f"be in the request {_join(sent)}, or default input alias set: ",
        )
    return {name: to_array(protos[name], name) for name in signature.inputs}


def _check_outputs(signature: Signature, output_filter) -> list[str]:
    names = list(output_filter)
    for name in names:
        if name not in signature.outputs:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {name} Outputs expected "
                f"to be in the set {_join(signature.outputs)}.",
            )
        if names.count(name) > 1:
            raise StatusError(
                "INVALID_ARGUMENT", f"duplicate output tensor alias: {name}"
            )
    return names or list(signature.outputs)
