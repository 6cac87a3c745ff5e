"""Calls over REST and gRPC without the client, as others would write them."""

import json
import time

import grpc
import pytest
import requests

from tests.serving import server

double_only = pytest.mark.skipif(
    bool(server.IMAGE), reason="of the double alone, or said otherwise by the server"
)


def post(server, body, path="docs", **options):
    """Status and JSON of a predict request."""
    data = body if isinstance(body, bytes) else json.dumps(body)
    response = requests.post(
        f"{server.rest}/v1/models/{path}:predict", data=data, timeout=60, **options
    )
    return response.status_code, response.json()


def get(server, path):
    response = requests.get(f"{server.rest}{path}", timeout=60)
    return response.status_code, response.json()


def texts(server, *prompts, path="docs"):
    """What `serving_default` answers."""
    status, answer = post(server, {"instances": list(prompts)}, path)
    assert status == 200, answer
    return [row["text"] for row in answer["predictions"]]


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("It didn't come to pass.")


class Predict:
    """Predict over gRPC, of tensors that TensorFlow makes."""

    def __init__(self, server):
        import tensorflow as tf
        from tensorflow_serving.apis import (
            predict_pb2,
            prediction_service_pb2_grpc,
        )

        self._tf = tf
        self._request = predict_pb2.PredictRequest
        self._channel = grpc.insecure_channel(server.grpc)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def __call__(self, inputs, signature="", *, model="docs", version=None, **options):
        request = self._request(**options)
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(self._tf.make_tensor_proto(value))
        response = self._stub.Predict(request, timeout=60)
        return response.model_spec, {
            name: self._tf.make_ndarray(proto)
            for name, proto in response.outputs.items()
        }

    def error(self, *arguments, **options):
        """Code and details of a call that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self(*arguments, **options)
        return caught.value.code().name, caught.value.details()

    def close(self):
        self._channel.close()
