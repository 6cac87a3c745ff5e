"""SERVING DOUBLE for tests: not TensorFlow Serving.

The tests have no TensorFlow Serving at hand. This stands in for it: the flags, the REST
and gRPC protocols, the rules for versions, warm-up and batching are made after the
server's source, and models are loaded by the C++ loader that it uses, with XLA off
(see `capi.py`). It can't show that the server's own binary behaves so, nor its speed.

    python -m tests.serving.double --model_name docs --model_base_path DIR
        [--port 8500] [--rest_api_port 8501] [--model_config_file models.config] ...

Port 0 picks a free one (for the server it switches the interface off). It prints the
addresses once the models are loaded. It has Predict, GetModelMetadata, GetModelStatus
and their REST forms. It lacks Classify, Regress, configurations that change, a second
try to load what failed, defaults of signatures and `enable_large_batch_splitting`.
Where JSON can't be parsed, the message begins as the server's and ends as Python's.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from tests.serving.capi import StatusError, load_tensorflow
from tests.serving.double_grpc import start_grpc
from tests.serving.double_models import Models
from tests.serving.double_rest import RequestCount, start_rest
from tests.serving.protos import (
    BatchingParameters,
    MonitoringConfig,
    model_server_config_pb2,
    parse_text_file,
)

BANNER = "SERVING DOUBLE for tests: not TensorFlow Serving"
METRICS_PATH = "/monitoring/prometheus/metrics"


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """The flags, named and written as those of tensorflow_model_server."""

    def boolean(text):
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]

    parser = argparse.ArgumentParser(prog="tests.serving.double", description=BANNER)

    def flag(name, default=False):
        if isinstance(default, bool):
            parser.add_argument(
                f"--{name}", type=boolean, nargs="?", const=True, default=default
            )
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)

    flag("port", 8500)
    flag("rest_api_port", 8501)
    flag("rest_api_timeout_in_ms", 30_000)
    flag("model_name", "default")
    flag("model_base_path", "")
    flag("model_config_file", "")
    flag("file_system_poll_wait_seconds", 1.0)
    flag("enable_model_warmup", True)
    flag("enable_batching")
    flag("batching_parameters_file", "")
    flag("monitoring_config_file", "")
    flag("xla_cpu_compilation_enabled")
    flag("allow_version_labels_for_unavailable_models")
    flags = parser.parse_args(arguments)
    if not flags.model_config_file and not flags.model_base_path:
        parser.error(
            "Both server_options.model_base_path and model_config_file are empty!"
        )
    return flags


def read_configs(flags: argparse.Namespace) -> list:
    """A ModelConfig for each model.

    Raises:
        StatusError: The file of configurations is wrong.
    """
    server_config = model_server_config_pb2.ModelServerConfig()
    if flags.model_config_file:
        parse_text_file(flags.model_config_file, server_config)
    else:
        server_config.model_config_list.config.add(
            name=flags.model_name,
            base_path=flags.model_base_path,
            model_platform="tensorflow",
        )
    configs = list(server_config.model_config_list.config)
    names = [config.name for config in configs]
    for config in configs:
        if names.count(config.name) > 1:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Illegal to list model {config.name} multiple times in config list",
            )
        if not Path(config.base_path).is_absolute():
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Expected model {config.name} to have an absolute path or URI; got "
                f"base_path()={config.base_path}",
            )
        if config.model_platform != "tensorflow":
            raise StatusError(
                "INVALID_ARGUMENT",
                "Illegal setting neither ModelServerConfig::model_type (deprecated) "
                "nor ModelServerConfig::model_platform, model name is "
                f"{config.name}",
            )
    return configs


def check_labels(configs: list, models: Models) -> None:
    """See that each label names a version that is available.

    Raises:
        StatusError: One doesn't.
    """
    for config in configs:
        for number in config.version_labels.values():
            states = {v.number: v.state for v in models.versions(config.name)}
            if states.get(number) != "AVAILABLE":
                raise StatusError(
                    "FAILED_PRECONDITION",
                    f"Request to assign label to version {number} of model "
                    f"{config.name}, which is not currently available for inference",
                )


def serve(flags: argparse.Namespace) -> None:
    """Load the models, open the ports and go on until killed.

    Raises:
        StatusError: A model can't be loaded, or a configuration is wrong.
    """
    configs = read_configs(flags)
    if flags.batching_parameters_file and not flags.enable_batching:
        raise StatusError(
            "INVALID_ARGUMENT",
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        )
    batching = BatchingParameters() if flags.enable_batching else None
    if flags.batching_parameters_file:
        parse_text_file(flags.batching_parameters_file, batching)
    monitoring = MonitoringConfig()
    if flags.monitoring_config_file:
        parse_text_file(flags.monitoring_config_file, monitoring)
    prometheus = monitoring.prometheus_config
    metrics_path = (prometheus.path or METRICS_PATH) if prometheus.enable else None
    load_tensorflow(xla=flags.xla_cpu_compilation_enabled)
    models = Models(
        configs, batching=batching, warmup=flags.enable_model_warmup, log=log
    )
    # As the server does, open no port before each model has a version.
    models.poll()
    while not models.is_ready():
        if models.errors():
            raise StatusError("UNKNOWN", "; ".join(models.errors()))
        time.sleep(flags.file_system_poll_wait_seconds or 1)
        models.poll()
    if not flags.allow_version_labels_for_unavailable_models:
        check_labels(configs, models)
    request_count = RequestCount()
    grpc_server, port = start_grpc(flags.port, models, request_count)
    rest_port = start_rest(
        flags.rest_api_port,
        models,
        timeout_ms=flags.rest_api_timeout_in_ms,
        metrics_path=metrics_path,
        request_count=request_count,
    )
    log(f"gRPC at localhost:{port}")
    log(f"REST at http://localhost:{rest_port}")
    while True:
        if flags.file_system_poll_wait_seconds > 0:
            time.sleep(flags.file_system_poll_wait_seconds)
            models.poll()
        else:
            grpc_server.wait_for_termination()


def log(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def die_with_parent() -> None:
    """End when the pipe at standard input closes, as it does however a parent ends."""

    def wait():
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Run the double."""
    log(BANNER)
    if os.environ.get("SERVING_DOUBLE_DIES_WITH_PARENT"):
        die_with_parent()
    try:
        serve(parse_flags(sys.argv[1:]))
    except StatusError as error:
        sys.exit(f"Failed to start server. Error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
