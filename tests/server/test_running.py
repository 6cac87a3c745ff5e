"""A server from its start to its end, with and without luck."""

import json
import logging
import os
import signal
import socket
import sys
import threading

import numpy as np
import openai
import pytest
import requests

import keras_gpt_cli
from keras_gpt.server import Settings, run
from keras_gpt.tf_serving import Client, ServingError
from tests.server.conftest import serve, wait_until
from tests.tf_serving.test_client import SCORE
from tests.tiny import make_lm


@pytest.fixture
def own_logs():
    """Puts the loggers back as they were."""
    loggers = [
        logging.getLogger(name) for name in ("keras_gpt.server", "uvicorn.error")
    ]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, fields in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, level = fields
        logger.setLevel(level)


@pytest.mark.usefixtures("own_logs")
def test_sigterm_lets_answers_end_and_refuses_new_ones(
    lm, tmp_path, monkeypatch, capfd
):
    lm.save(tmp_path / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://localhost:{port}"
    asked = {"prompt": "hello", "max_tokens": 150}
    came = []

    def is_status(status):
        try:
            return requests.get(f"{address}/ready").status_code == status
        except requests.ConnectionError:
            return False

    def be_a_client():
        wait_until(lambda: is_status(200))
        stream = requests.post(
            f"{address}/v1/completions", json={**asked, "stream": True}, stream=True
        )
        lines = stream.iter_lines()
        came.append(next(lines))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: is_status(503))
        came.append(requests.post(f"{address}/v1/completions", json=asked))
        came.extend(lines)

    monkeypatch.setattr(
        sys, "argv", ["keras-gpt", "serve", str(tmp_path / "tiny"), f"--port={port}"]
    )
    thread = threading.Thread(target=be_a_client)
    thread.start()
    with pytest.raises(SystemExit) as raised:
        keras_gpt_cli.main()
    thread.join()
    assert not raised.value.code
    first, refused, *rest = came
    assert refused.status_code == 503
    lines = [line for line in (first, *rest) if line]
    assert lines[-1] == b"data: [DONE]"
    last = json.loads(lines[-2].removeprefix(b"data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    log = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    asked, answered = (line for line in log if line["message"] == "request")
    assert (asked["status"], answered["status"]) == (503, 200)
    assert answered["completion_tokens"] == 150


def test_without_the_key_nothing_but_health_is_shown():
    with serve(make_lm(), num_slots=1, api_key="secret") as server:
        for key in ("", "Bearer wrong", "Basic secret"):
            answer = requests.get(
                f"{server.address}/v1/models", headers={"Authorization": key}
            )
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert requests.get(f"{server.address}/metrics").status_code == 401
        assert requests.get(f"{server.address}/health").status_code == 200
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="secret") as client:
            assert client.models.list().data


def test_an_answer_that_takes_too_long_is_given_up():
    with serve(make_lm(), num_slots=1, timeout=0.05) as server:
        answer = requests.post(
            f"{server.address}/v1/completions",
            json={"prompt": "hello", "max_tokens": 2000, "n": 3},
        )
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        assert answer.headers["X-Should-Retry"] == "false"
        scheduler = server.app.state.service.scheduler
        wait_until(lambda: not scheduler.num_running)


def test_a_failure_of_the_model_is_seen_and_hangs_nobody(caplog):
    lm = make_lm()
    with serve(lm, num_slots=1) as server:
        lm.tokenizer = None  # what it writes can't become text
        for _ in range(2):
            answer = requests.post(
                f"{server.address}/v1/completions", json={"prompt": [1, 2]}
            )
            assert answer.status_code == 500
            assert answer.json()["error"]["type"] == "server_error"
        assert requests.get(f"{server.address}/health").status_code == 500
        assert requests.get(f"{server.address}/ready").status_code == 503
    assert "AttributeError" in caplog.text


def test_the_client_of_tensorflow_serving_gets_the_models_text(server, lm):
    chat = [[{"role": "user", "content": text}] for text in ("hi", "oh")]
    with Client(server.address, model="tiny", retries=0) as client:
        client.wait_until_ready()
        controls = {"temperature": [0, 1.0], "top_k": None, "seed": 4}
        found = client.complete(["hello", "12"], 12, **controls)
        expected = lm.complete(["hello", "12"], 12, **controls)
        assert [(c.text, c.num_tokens, c.finish_reason) for c in found] == [
            (c.text, len(c.ids), c.finish_reason) for c in expected
        ]
        assert client.chat(chat, 9, temperature=0) == [
            lm.chat(messages, 9, temperature=0) for messages in chat
        ]
        ids = [[1, 2, 3], [4]]
        expected = lm.tokenizer.encode(lm.generate_from_ids([ids[1]], 5, seed=1)[0])
        assert client.generate_ids(ids, 5)[1] == expected
        signatures = client.metadata()
        assert signatures["score"] == SCORE
        assert {"prompt", "seed", "temperature"} < signatures["generate"][
            "inputs"
        ].keys()
        assert "summarize" not in signatures
        for wrong, message in (
            ({"max_new_tokens": 1001}, "at most 1000"),
            ({"prompts": "ABC"}, "not in"),
        ):
            with pytest.raises(ServingError, match=message) as caught:
                client.generate(**{"prompts": "a", **wrong})
            assert caught.value.code == "INVALID_ARGUMENT"


def test_scores_summaries_and_translations_are_the_models_own(server, lm, monkeypatch):
    asked = {"instruction": "say it"}
    for one in (lm, server.app.state.service.lm):
        known = {
            "summarize": asked,
            "translate": {**asked, "languages": [["en", "de"]]},
        }
        monkeypatch.setattr(one, "tasks", known)
    texts = ["hello there. " * 4, "12"]  # one that is read in parts
    languages = {"source": "en", "target": "de"}
    with Client(server.address, model="tiny", retries=0) as client:
        for found, expected in zip(client.score(texts), lm.score(texts), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)  # summed otherwise
        assert client.tokenize(texts) == lm.tokenizer.encode_batch(texts)
        assert client.summarize(texts) == lm.summarize(texts)
        translations = lm.translate(texts, **languages)
        assert client.translate(texts, **languages) == translations
        with pytest.raises(ServingError, match="wasn't tuned"):
            client.translate(texts, source="en", target="fr")
        monkeypatch.setattr(
            server.app.state.service.lm,
            "tasks",
            {"translate": {**asked, "languages": [["en", "de"]]}},
        )
        answer = requests.post(
            f"{server.address}/v1/models/tiny:predict", json={"instances": texts}
        )
        assert answer.json() == {"predictions": [{"text": t} for t in translations]}
        assert client.metadata()["serving_default"]["inputs"].keys() == {"prompt"}


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        {},
        {"instances": []},
        {"inputs": []},
        {"inputs": "a"},
        {"inputs": {"prompt": [1]}},
        {"inputs": {"nothing": [1]}},
        {"inputs": ["a"], "instances": ["a"]},
        {"instances": [{"prompt": "a"}, "b", {}]},
        {"signature_name": "classify", "instances": ["a"]},
        {"signature_name": "generate", "inputs": {"prompt": ["a"], "top_p": [2]}},
        {"signature_name": "generate", "inputs": {"prompt": ["a"], "top_p": ["x"]}},
        {"signature_name": "generate_ids", "inputs": {"token_ids": [], "lengths": []}},
        {
            "signature_name": "generate_ids",
            "instances": [{"token_ids": 1, "lengths": 1}],
        },
        {"signature_name": "chat", "instances": [{"roles": 1, "contents": ["a"]}]},
        {"signature_name": "chat", "instances": [{"roles": [""], "contents": ["a"]}]},
        {"signature_name": "summarize", "instances": ["a"]},  # it wasn't tuned for that
        {"signature_name": "score", "instances": [1]},
        {"signature_name": "score", "instances": ["a" * 99]},
    ],
)
def test_a_wrong_prediction_is_refused_as_tensorflow_serving_does(server, body):
    text = body if isinstance(body, str) else json.dumps(body)
    answer = requests.post(f"{server.address}/v1/models/tiny:predict", data=text)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a/b"),
        ("api_key", " "),
        ("num_slots", 0),
        ("max_waiting", -1),
        ("max_tokens", 10**9),
        ("port", 70_000),
        ("timeout", -1),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        Settings(**{"name": "tiny", field: value})


def test_without_the_extra_the_error_names_it(lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-gpt\[server\]'"):
        run(lm, Settings(name="tiny"))
