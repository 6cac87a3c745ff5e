"""What the tests' server (or the real one, see `server.py`) shows of SavedModels."""

import os
import subprocess
import sys

import pytest
import requests

from tests.tf_serving import server
from tests.tf_serving.server import StartError, serve

double_only = pytest.mark.skipif(
    bool(server.IMAGE), reason="of the double alone, or said otherwise by the server"
)


def post(server, body, path="docs"):
    """Status and JSON of a predict request."""
    url = f"{server.rest}/v1/models/{path}:predict"
    response = requests.post(url, json=body, timeout=60)
    return response.status_code, response.json()


def test_rows_and_columns_are_answered_alike(server):
    columns = {
        "text": ["BA", "É"],
        "num_tokens": [2, 1],
        "finish_reason": ["stop", "stop"],
    }
    rows = [
        {"text": "BA", "num_tokens": 2, "finish_reason": "stop"},
        {"text": "É", "num_tokens": 1, "finish_reason": "stop"},
    ]
    for instances in (["ab", "é"], [{"prompt": "ab"}, {"prompt": "é"}]):
        body = {"instances": instances}
        assert post(server, body) == (200, {"predictions": rows})
    for inputs in (["ab", "é"], {"prompt": ["ab", "é"]}):
        assert post(server, {"inputs": inputs}) == (200, {"outputs": columns})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "Missing"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [1]}, "is not of expected type: string"),
        ({"instances": [{"text": "b"}]}, "does not have named input: text"),
        ({"inputs": {"text": ["a"]}}, "Missing named input: prompt in 'inputs' object"),
        ({"signature_name": "none", "inputs": ["a"]}, '"none" not found'),
        ({"signature_name": "generate", "instances": ["a"]}, "plain list"),
        (
            {"signature_name": "generate", "instances": [{"prompt": "a"}]},
            "keys must be equal to: max_new_tokens,prompt,seed,temperature,top_k,top_p",
        ),
    ],
)
def test_what_is_wrong_with_a_request_is_told(server, body, error):
    status, answer = post(server, body)
    assert status == 400
    assert error in answer["error"]


def test_integers_must_be_written_as_integers(server):
    row = {"prompt": "a", "max_new_tokens": 1, "temperature": 0, "top_k": 0}
    row |= {"top_p": 1, "seed": 0}  # an integer is a float too
    body = {"signature_name": "generate", "instances": [row]}
    assert post(server, body)[0] == 200
    for wrong in (1.0, 2**31, "1", True):
        row["seed"] = wrong
        status, answer = post(server, body)
        assert status == 400
        assert "is not of expected type: int32" in answer["error"]


def test_the_newest_version_is_served_and_others_only_when_asked_for(toys):
    with serve(toys / "docs") as server:
        _, answer = post(server, {"inputs": ["ab"]})
        assert answer["outputs"]["text"] == ["v2BA"]
        assert post(server, {"inputs": ["a"]}, "docs/versions/1")[0] == 404


def test_xla_must_not_be_needed(toys):
    """As in the server: such a model loads and then fails when it is called."""
    with serve(toys / "compiled") as server:
        status, answer = post(server, {"inputs": [1.0]})
        assert status >= 400
        assert "XLA" in answer["error"]


@double_only
def test_a_model_that_is_damaged_ends_the_start(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(StartError, match="Failed to start server"), serve(tmp_path):
        pass


@double_only
def test_it_says_what_it_is(server):
    assert server.log[0] == "SERVING DOUBLE for tests: not TensorFlow Serving"


@double_only
def test_the_loader_serves_threads_without_tensorflow_python(toys):
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from tests.tf_serving.capi import Model, StatusError, load_tensorflow

load_tensorflow()
with Model(sys.argv[1]) as model:
    assert set(model.signatures["tokenize"].outputs) == {"token_ids", "num_tokens"}
    outputs = model.run("tokenize", {"text": [b"abc", b"d"]})
    assert outputs["token_ids"].tolist() == [[97, 98, 99], [100, -1, -1]]
    assert outputs["num_tokens"].dtype == np.int32
    assert model.run("tokenize", {"text": []})["token_ids"].shape == (0, 0)

    def call(i):
        text = str(i).encode() * 20  # too long to be stored within the string's record
        outputs = model.run("serving_default", {"prompt": [text, b"", text * 50]})
        assert outputs["text"].tolist() == [text[:-9:-1], b"", text[:-9:-1]]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(2000)))
    endless = dict(prompt=["a"], max_new_tokens=[2**30], temperature=[0], top_k=[0])
    endless |= dict(top_p=[1], seed=[0])
    for signature, inputs in (
        ("serving_default", {"prompt": np.array([1])}),
        ("generate", endless),
    ):
        try:
            model.run(signature, inputs, timeout_ms=100)
        except StatusError as error:
            print(error.code)
assert not {"keras", "jax"} & set(sys.modules)
assert not hasattr(sys.modules["tensorflow"], "function")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", script, str(toys / "docs" / "1")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["INVALID_ARGUMENT", "DEADLINE_EXCEEDED"]
