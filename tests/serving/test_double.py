"""The serving double, or the real server (see `server.py`), speaks the protocols."""

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from tests.serving.calls import Predict, double_only, get, post, texts
from tests.serving.server import serve


@pytest.fixture(scope="module")
def predict(server):
    predict = Predict(server)
    yield predict
    predict.close()


# REST


def test_rows_of_one_input_may_be_bare(server):
    rows = [
        {"text": "OLLÉH", "num_tokens": 5, "finish_reason": "stop"},
        {"text": "LKJIHGFE", "num_tokens": 8, "finish_reason": "length"},
    ]
    assert post(server, {"instances": ["héllo", "abcdefghijkl"]}) == (
        200,
        {"predictions": rows},
    )
    named = [{"prompt": "héllo"}, {"prompt": "abcdefghijkl"}]
    assert post(server, {"instances": named}) == (200, {"predictions": rows})


def test_columns_are_answered_in_columns(server):
    columns = {
        "text": ["BA", "C"],
        "num_tokens": [2, 1],
        "finish_reason": ["stop", "stop"],
    }
    for inputs in (["ab", "c"], {"prompt": ["ab", "c"]}):
        assert post(server, {"inputs": inputs}) == (200, {"outputs": columns})


def test_bytes_go_in_base64_and_outputs_named_so_come_in_it(server):
    data = {"b64": base64.b64encode(b"\xff\x00a").decode()}
    body = {"signature_name": "echo", "instances": [data]}
    assert post(server, body) == (200, {"predictions": [data]})
    body = {"signature_name": "echo", "inputs": [data]}
    assert post(server, body) == (200, {"outputs": [data]})


def test_nan_and_infinity_are_read_and_written(server):
    body = b'{"signature_name": "total", "inputs": [NaN, Infinity, 1]}'
    status, answer = post(server, body)
    assert status == 200
    assert str(answer["outputs"]["numbers"]) == "[nan, inf, 2.0]"


def test_rows_need_the_batch_in_every_output(server):
    body = {"signature_name": "total", "instances": [1.0, 2.0]}
    status, answer = post(server, body)
    assert (status, answer) == (
        400,
        {"error": "Tensor name: sum has no shape information "},
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b'{"instances": [', "JSON Parse error"),
        (b'{"instances": ["\\ud800"]}', "JSON Parse error"),
        (b"[1]", "Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": ["a"], "instances": ["a"]}, "expecting only one of 'inputs'"),
        ({"instances": "a"}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [1]}, "is not of expected type: string"),
        ({"instances": [None]}, "Type: Null is not of expected type: string"),
        ({"instances": ["a", {"prompt": "b"}]}, "Expecting value/list but got object"),
        ({"instances": [{"prompt": "b"}, "a"]}, "Expecting object but got list"),
        ({"instances": [{"text": "b"}]}, "does not have named input: text"),
        ({"instances": [{"b64": "%"}]}, "Unable to base64 decode"),
        ({"instances": ["a", ["b"]]}, "Expecting shape [] but got: [1]"),
        ({"inputs": {"text": ["a"]}}, "Missing named input: prompt in 'inputs' object"),
        ({"inputs": [["a"], ["b", "c"]]}, "Encountered list at unexpected size: 2"),
        ({"signature_name": 1, "inputs": ["a"]}, "must be a string value"),
        (
            {"signature_name": "none", "inputs": ["a"]},
            'Serving signature name: "none" not found in signature def',
        ),
        ({"signature_name": "generate", "instances": ["a"]}, "plain list"),
        (
            {"signature_name": "generate", "instances": [{"prompt": "a"}]},
            "keys must be equal to: max_new_tokens,prompt,seed,temperature,top_k,top_p",
        ),
        ({"signature_name": "total", "inputs": [True]}, "expected type: float"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(server, body, error):
    status, answer = post(server, body)
    assert status == 400
    assert error in answer["error"]


def test_integers_must_be_written_as_integers(server):
    row = {
        "prompt": "a",
        "max_new_tokens": 1,
        "temperature": 0,  # an integer is a float too
        "top_k": 0,
        "top_p": 1,
        "seed": 0,
    }
    body = {"signature_name": "generate", "instances": [row]}
    assert post(server, body)[0] == 200
    for wrong in (1.0, 2**31, "1", True):
        row["seed"] = wrong
        status, answer = post(server, body)
        assert status == 400
        assert "is not of expected type: int32" in answer["error"]


def test_unknown_models_and_paths(server):
    assert post(server, {"instances": ["a"]}, "nobody") == (
        404,
        {"error": "Servable not found for request: Latest(nobody)"},
    )
    assert post(server, {"instances": ["a"]}, "docs/versions/7") == (
        404,
        {"error": "Servable not found for request: Specific(docs, 7)"},
    )
    status, answer = get(server, "/v1/models/docs/versions/7")
    assert (status, answer) == (
        404,
        {"error": "Could not find version 7 of model docs"},
    )
    response = requests.post(f"{server.rest}/v1/models/docs", timeout=10)
    assert response.status_code == 400
    assert response.json()["error"] == "Malformed request: POST /v1/models/docs"
    assert requests.get(f"{server.rest}/", timeout=10).status_code == 404


def test_status_and_metadata_are_those_of_the_protocol(server):
    version = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    expected = (200, {"model_version_status": [version]})
    assert get(server, "/v1/models/docs") == expected
    assert get(server, "/v1/models/docs/versions/1") == expected
    status, answer = get(server, "/v1/models/docs/versions/1/metadata")
    assert status == 200
    assert answer["model_spec"] == {
        "name": "docs",
        "signature_name": "",
        "version": "1",
    }
    signature = answer["metadata"]["signature_def"]["signature_def"]["tokenize"]
    text = signature["inputs"]["text"]
    assert text["dtype"] == "DT_STRING"
    assert text["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }
    assert signature["method_name"] == "tensorflow/serving/predict"


# gRPC


def test_predict_over_grpc(predict):
    spec, outputs = predict({"prompt": [b"abc", "é".encode()]})
    assert (spec.name, spec.version.value) == ("docs", 1)
    assert spec.signature_name == "serving_default"
    assert outputs["text"].tolist() == [b"CBA", "É".encode()]
    assert outputs["num_tokens"].dtype == np.int32
    _, outputs = predict({"prompt": [b"abc"]}, output_filter=["num_tokens"])
    assert list(outputs) == ["num_tokens"]


def test_errors_over_grpc(predict):
    assert predict.error({"prompt": [b"a"]}, model="nobody") == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nobody)",
    )
    assert predict.error({"prompt": [b"a"]}, version=3) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(docs, 3)",
    )
    assert predict.error({"prompt": [b"a"]}, "none") == (
        "FAILED_PRECONDITION",
        'Serving signature key "none" not found.',
    )
    code, details = predict.error({"prompt": [b"a"]}, "generate")
    assert code == "INVALID_ARGUMENT"
    assert "input size does not match signature: 1!=6" in details
    assert (
        "Missing but required: {max_new_tokens,seed,temperature,top_k,top_p}" in details
    )
    code, details = predict.error({"text": [b"a"]})
    assert code == "INVALID_ARGUMENT"
    assert "Signature input alias: prompt" in details
    code, details = predict.error({"prompt": np.array([1], "int32")})
    assert code == "INVALID_ARGUMENT"
    code, details = predict.error({"prompt": [b"a"]}, output_filter=["none"])
    assert code == "INVALID_ARGUMENT"
    assert "output tensor alias not found in signature: none" in details


def test_both_interfaces_agree(server, predict):
    prompts = [f"prompt {i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        over_rest = list(pool.map(lambda p: texts(server, p)[0], prompts * 4))
    _, outputs = predict({"prompt": [prompt.encode() for prompt in prompts]})
    assert over_rest == [text.decode() for text in outputs["text"]] * 4


@double_only
def test_rest_requests_end_after_their_time(toys):
    row = {"prompt": "a", "max_new_tokens": 2**30, "temperature": 0.0}
    row |= {"top_k": 0, "top_p": 1.0, "seed": 0}
    with serve(toys / "first", "--rest_api_timeout_in_ms=300") as server:
        body = {"signature_name": "generate", "instances": [row]}
        status, answer = post(server, body)
        assert status == 504
        assert "Timed out" in answer["error"]
