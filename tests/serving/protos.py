"""Protocol classes for the serving double, without TensorFlow Python.

`tensorflow_serving.apis` imports `tensorflow.core...`, and so all of TensorFlow, which
takes seconds and would put ops at the model's disposal that the server hasn't. Here the
package `tensorflow` stays empty, and only its generated classes load.
So import this in a process of the double alone.
"""

# ruff: noqa: E402 the imports need the empty module

import importlib.util
import sys
from pathlib import Path

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from tests.serving.status import StatusError

if "tensorflow" in sys.modules:
    raise ImportError("The serving double needs a process without TensorFlow Python.")
# its own module, without its code having run
sys.modules["tensorflow"] = importlib.util.module_from_spec(
    importlib.util.find_spec("tensorflow")
)

from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

__all__ = [
    "BatchingParameters",
    "MonitoringConfig",
    "get_model_metadata_pb2",
    "get_model_status_pb2",
    "meta_graph_pb2",
    "model_server_config_pb2",
    "model_service_pb2_grpc",
    "parse_text_file",
    "predict_pb2",
    "prediction_log_pb2",
    "prediction_service_pb2_grpc",
    "tensor_pb2",
]

# Messages that tensorflow-serving-api leaves out: {message: {field: (number, type)}}
_MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": (1, "google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, "google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, "google.protobuf.Int64Value"),
        "num_batch_threads": (4, "google.protobuf.Int64Value"),
        "thread_pool_name": (5, "google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, "google.protobuf.BoolValue"),
        "max_execution_batch_size": (9, "google.protobuf.Int64Value"),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {
        "prometheus_config": (1, "tensorflow.serving.PrometheusConfig")
    },
}


def _build_messages() -> dict:
    """Classes of the messages of `_MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving_double.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in _MESSAGES.items():
        built = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = built.field.add(name=name, number=number)
            repeated, _, kind = kind.rpartition(" ")
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if "." in kind:
                field.type = field.TYPE_MESSAGE
                field.type_name = f".{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.serving.{message}")
        )
        for message in _MESSAGES
    }


_CLASSES = _build_messages()
BatchingParameters = _CLASSES["BatchingParameters"]
MonitoringConfig = _CLASSES["MonitoringConfig"]


def parse_text_file(path: str, message):
    """Fill a message from a text file, as the server reads its configurations."""
    try:
        return text_format.Parse(Path(path).read_text("utf-8"), message)
    except OSError as error:
        raise StatusError("NOT_FOUND", f"{path}; {error.strerror}") from error
    except text_format.ParseError as error:
        raise StatusError(
            "INVALID_ARGUMENT", f"Invalid protobuf file: '{path}' ({error})"
        ) from error
