"""The files of examples/tf_serving, and a server that runs with them."""

import json
import re
import runpy
import shlex
import shutil
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import requests
import yaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
    wrappers_pb2,
)

import keras_gpt
from keras_gpt.tf_serving import Client
from tests.tf_serving.server import serve

# where an export takes no process of its own
pytestmark = [
    pytest.mark.every_backend,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="tested on TensorFlow"
    ),
]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tf_serving"
IMAGE = "tensorflow/serving:2.20.0"
REST, GRPC = 8501, 8500
FLAGS = {
    "--model_config_file=/config/models.config",
    "--allow_version_labels_for_unavailable_models=true",
    "--enable_batching=true",
    "--batching_parameters_file=/config/batching.txt",
    "--monitoring_config_file=/config/monitoring.txt",
    "--rest_api_timeout_in_ms=120000",
}
BATCH_SIZES = [1, 8, 32]


# The files


# Messages of the server that tensorflow-serving-api leaves out
MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": "google.protobuf.Int64Value",
        "batch_timeout_micros": "google.protobuf.Int64Value",
        "max_enqueued_batches": "google.protobuf.Int64Value",
        "num_batch_threads": "google.protobuf.Int64Value",
        "thread_pool_name": "google.protobuf.StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "google.protobuf.BoolValue",
        "max_execution_batch_size": "google.protobuf.Int64Value",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "server.PrometheusConfig"},
}


def message_of_the_server(name):
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="server.proto", package="server")
    file.syntax = "proto3"
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, fields in MESSAGES.items():
        built = file.message_type.add(name=message)
        for number, (field, kind) in enumerate(fields.items(), 1):
            added = built.field.add(name=field, number=number)
            repeated, _, kind = kind.rpartition(" ")
            added.label = added.LABEL_REPEATED if repeated else added.LABEL_OPTIONAL
            if "." in kind:
                added.type = added.TYPE_MESSAGE
                added.type_name = f".{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind.upper()}")
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"server.{name}"))


@pytest.fixture(scope="module")
def settings():
    """models.config, batching.txt and monitoring.txt, as the server reads them."""
    from tensorflow_serving.config import model_server_config_pb2

    def read(name, kind):
        message = text_format.Parse((EXAMPLE / name).read_text("utf-8"), kind())
        return json_format.MessageToDict(message, preserving_proto_field_name=True)

    return SimpleNamespace(
        models=read("models.config", model_server_config_pb2.ModelServerConfig),
        batching=read("batching.txt", message_of_the_server("BatchingParameters")),
        monitoring=read("monitoring.txt", message_of_the_server("MonitoringConfig")),
    )


def read_yaml(name):
    return list(yaml.safe_load_all((EXAMPLE / name).read_text("utf-8")))


def readme():
    return (EXAMPLE / "README.md").read_text("utf-8")


def test_settings_parse_as_the_server_reads_them(settings):
    (model,) = settings.models["model_config_list"]["config"]
    assert model == {
        "name": "docs",
        "base_path": "/models/docs",
        "model_platform": "tensorflow",
        "model_version_policy": {"specific": {"versions": ["1", "2"]}},
        "version_labels": {"stable": "1", "canary": "2"},
    }
    assert settings.batching["pad_variable_length_inputs"]
    assert settings.monitoring["prometheus_config"]["enable"]


def test_batch_sizes_are_those_that_an_export_warms_up(settings):
    defaults = keras_gpt.LanguageModel.export.__kwdefaults__
    allowed = [int(size) for size in settings.batching["allowed_batch_sizes"]]
    assert allowed == list(defaults["batch_sizes"]) == BATCH_SIZES
    most = int(settings.batching["max_batch_size"])
    assert most == allowed[-1] == Client.__init__.__kwdefaults__["batch_size"]


def test_compose_and_prometheus_belong_together(settings):
    (compose,) = read_yaml("compose.yaml")
    server = compose["services"]["tensorflow-serving"]
    assert server["image"] == IMAGE
    assert set(server["command"]) == FLAGS
    assert server["ports"] == [f"127.0.0.1:{port}:{port}" for port in (GRPC, REST)]
    assert f"/{REST}" in server["healthcheck"]["test"][-1]
    (prometheus,) = read_yaml("prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == settings.monitoring["prometheus_config"]["path"]
    assert job["static_configs"] == [{"targets": [f"tensorflow-serving:{REST}"]}]


def test_kubernetes_objects_belong_together(settings):
    objects = {item["kind"]: item for item in read_yaml("kubernetes.yaml")}
    deployment, service = objects["Deployment"]["spec"], objects["Service"]["spec"]
    pod = deployment["template"]["spec"]
    (server,) = pod["containers"]
    assert server["image"] == IMAGE
    assert set(server["args"]) == FLAGS
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"grpc": GRPC, "rest": REST}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[name]["httpGet"] == {"path": "/v1/models/docs", "port": "rest"}
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 300
    assert [(p["port"], p["targetPort"]) for p in service["ports"]] == [
        (GRPC, "grpc"),
        (REST, "rest"),
    ]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == service["selector"] == labels
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["initContainers"], server]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == objects["Deployment"]["metadata"]["name"]
    annotations = deployment["template"]["metadata"]["annotations"]
    path = settings.monitoring["prometheus_config"]["path"]
    assert annotations["prometheus.io/path"] == path
    assert annotations["prometheus.io/port"] == str(REST)


def test_kserve_serves_the_same_model():
    (service,) = read_yaml("kserve.yaml")
    assert service["kind"] == "InferenceService"
    assert service["metadata"]["name"] == "docs"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "tensorflow"}
    assert model["runtimeVersion"] == IMAGE.partition(":")[2]
    assert "--batching_parameters_file=/mnt/models/batching.txt" in model["args"]


def test_readme_names_each_file_and_the_image():
    for path in EXAMPLE.iterdir():
        if path.is_file() and path.name != "README.md":
            assert f"`{path.name}`" in readme()
    assert set(re.findall(r"tensorflow/serving:[\d.]+\d", readme())) == {IMAGE}


# A server that runs with them


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with two versions of `docs`, of different weights."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = keras_gpt.CharacterTokenizer.train([string.printable], progress=False)
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        model = keras_gpt.GPT(config)
        for weight in model.weights:
            if len(weight.shape) > 1:  # or greedy text would repeat one token
                weight.assign(weight * 8)
        lm = keras_gpt.LanguageModel(model, tokenizer)
        lm.export(folder / "docs", next_version=True, progress=False)
    # where kserve.yaml wants it; it is no version
    shutil.copy(EXAMPLE / "batching.txt", folder / "docs")
    return folder


@pytest.fixture(scope="module")
def server(served, tmp_path_factory):
    """A server of them with the flags of compose.yaml, its paths replaced."""
    folder = tmp_path_factory.mktemp("config")
    for name in ("models.config", "batching.txt", "monitoring.txt"):
        content = (EXAMPLE / name).read_text("utf-8")
        (folder / name).write_text(
            content.replace('"/models/', f'"{served}/'), encoding="utf-8"
        )
    flags = [flag.replace("=/config/", f"={folder}/") for flag in sorted(FLAGS)]
    with serve(None, *flags, folders=[served]) as running:
        yield running


def curl(command, server):
    """The answer to a curl line, sent to a server that runs."""
    arguments = shlex.split(command)
    url = arguments[1].replace(f"http://localhost:{REST}", server.rest)
    assert url != arguments[1]
    if shutil.which("curl"):
        done = subprocess.run(
            ["curl", "--silent", "--show-error", url, *arguments[2:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
    if arguments[2:3] == ["-d"]:
        return requests.post(url, data=arguments[3], timeout=60).text
    return requests.get(url, timeout=60).text


def test_every_curl_line_of_the_readme_is_answered(server):
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme(), re.DOTALL))
    # a line goes on while its quotation mark is open
    commands = re.findall(r"^curl [^'\n]*(?:'[^']*')?$", blocks, re.MULTILINE)
    assert len(commands) == blocks.count("curl ") == 11
    answers = [curl(command, server) for command in commands]
    signatures = set()
    for command, answer in zip(commands, answers, strict=True):
        if "-d" not in command:
            continue
        body = json.loads(shlex.split(command)[3])
        signatures.add(body.get("signature_name", "serving_default"))
        predictions = json.loads(answer).get("predictions")
        assert predictions, answer
        assert len(predictions) == len(body["instances"])
        assert all("num_tokens" in row for row in predictions)
    metadata = json.loads(answers[6])["metadata"]["signature_def"]["signature_def"]
    assert signatures == set(metadata) - {"__saved_model_init_op"}
    states = {
        item["version"]: item["state"]
        for item in json.loads(answers[5])["model_version_status"]
    }
    assert states == {"1": "AVAILABLE", "2": "AVAILABLE"}
    # versions/1, labels/stable, labels/canary; the first line asked none of them
    default, *_, one, stable, canary, metrics = answers
    assert one == stable != canary == default
    assert ':tensorflow:serving:request_count{model_name="docs",status="OK"}' in metrics


def test_errors_are_those_that_the_readme_explains(server):
    row = {"prompt": "a", "max_new_tokens": 4, "temperature": 0}
    row |= {"top_k": 0, "top_p": 1, "seed": 0}
    cases = {
        "`prompt` is longer than ": {**row, "prompt": "a" * 65},
        "`max_new_tokens` must be an integer of at least 0 and at most 64": {
            **row,
            "max_new_tokens": 65,
        },
        "keys must be equal to: max_new_tokens,prompt,seed,": {"prompt": "a"},
        "JSON Value: 1.0 Type: Number is not of expected type: int32": {
            **row,
            "top_k": 1.0,
        },
        "Servable not found for request: Specific(docs, ": row,
    }
    for message, instance in cases.items():
        version = 3 if "Specific" in message else 2
        answer = requests.post(
            f"{server.rest}/v1/models/docs/versions/{version}:predict",
            json={"signature_name": "generate", "instances": [instance]},
            timeout=60,
        )
        assert answer.status_code >= 400
        assert message in answer.json()["error"]
        assert message in readme()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_client_prints_what_the_labelled_version_says(
    server, protocol, monkeypatch, capsys
):
    prompts = ["The string module ", "A list is"]
    options = ["--address", getattr(server, protocol), "--label", "stable"]
    options += ["--max-new-tokens", "8", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["client.py", *options, *prompts])
    runpy.run_path(str(EXAMPLE / "client.py"), run_name="__main__")
    with Client(server.rest, model="docs", version=1) as client:
        texts = client.generate(prompts, 8, seed=3)
    lines = [
        f"> {prompt}{text}\n(8 tokens, length)\n"
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    assert capsys.readouterr().out == "".join(lines)


def test_64_requests_at_once_from_8_clients_get_what_each_gets_alone(server):
    clients = [
        Client(address, model="docs")
        for address in (server.rest, server.grpc)
        for _ in range(4)
    ]
    tokenizer = keras_gpt.CharacterTokenizer.train([string.printable], progress=False)

    def ask(i):
        prompt = string.printable[i % 40 : i % 40 + 1 + i % 23]
        # greedy and sampled in turn, with seeds, lengths and limits of their own
        controls = {"temperature": i % 2, "top_k": 5 + i % 20, "seed": 1000 + i}
        client, max_new_tokens = clients[i % 8], 1 + i % 16
        if i % 4 < 2:
            return client.generate(prompt, max_new_tokens, **controls)
        return client.generate_ids(
            [tokenizer.encode(prompt)], max_new_tokens, **controls
        )[0]

    alone = [ask(i) for i in range(64)]
    assert len({str(answer) for answer in alone}) > 48
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert together == alone
    for client in clients:
        client.close()


def test_bad_requests_are_errors_and_the_next_is_served(server):
    controls = (
        '"max_new_tokens": 4, "temperature": NaN, "top_k": 0, "top_p": 1, "seed": 0'
    )
    row = f'{{"prompt": "a", {controls}}}'
    good = '{"instances": ["a"]}'
    bodies = {
        f'{{"signature_name": "generate", "instances": [{row}]}}': (
            "`temperature` must be a number of at least 0"
        ),
        '{"signature_name": "translate", "instances": ["a"]}': "translate",
        '{"instances": []}': "",
        '{"inputs": {"prompt": []}}': "at least one row",
        '{"instances": [1]}': "string",
        '{"instances": [{"text": "a"}]}': "does not have named input: text",
    }

    def post(body):
        url = f"{server.rest}/v1/models/docs:predict"
        return requests.post(url, data=body, timeout=60)

    first = post(good).json()
    assert first["predictions"]
    for body, message in bodies.items():
        answer = post(body)
        assert answer.status_code == 400, answer.text
        assert message in answer.json()["error"]
        assert post(good).json() == first
