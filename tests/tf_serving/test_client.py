"""The client against a server, over REST and gRPC alike."""

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_gpt.tf_serving import Client, Completion, ServingError
from tests.tf_serving.server import serve

SCORE = {
    "inputs": {"text": {"dtype": "string", "shape": (None,)}},
    "outputs": {
        "log_probs": {"dtype": "float32", "shape": (None, None)},
        "num_tokens": {"dtype": "int32", "shape": (None,)},
        "token_ids": {"dtype": "int32", "shape": (None, None)},
    },
}  # as metadata describe it


@pytest.fixture(params=["rest", "grpc"])
def address(request, server):
    return getattr(server, request.param)


@pytest.fixture
def client(address):
    with Client(address, model="docs") as client:
        yield client


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_one_prompt_gives_a_string_and_several_a_list(client):
    assert client.generate("abc", temperature=0) == "CBA"
    assert client.generate(["abc", "dé"], temperature=0) == ["CBA", "ÉD"]
    assert client.generate([]) == []


def test_the_defaults_are_the_models_and_seeds_count_up(client):
    assert client.generate("abcdefghijklmn") == "NMLKJIHGFEDC"
    assert client.generate(["a", "b"], temperature=0.5, top_p=None) == [
        "A t=0.50 k=-1 p=1.00 s=0",
        "B t=0.50 k=-1 p=1.00 s=1",
    ]


def test_conversations_are_answered_alone_and_together(client):
    system = {"role": "system", "content": "Be kind."}
    question = {"role": "user", "content": "abc"}
    assert client.chat([question]) == "user: CBA"
    assert client.chat([[system, question], [question]]) == [
        "system user: CBA",
        "user: CBA",
    ]
    assert client.chat([question], 2, temperature=1.5, seed=3) == (
        "user: CB t=1.50 k=-1 p=-1.00 s=3"
    )
    assert client.chat([]) == []
    with pytest.raises(ValueError, match="Message 1 must be a dictionary"):
        client.chat([question, {"role": "user"}])


def test_texts_are_summarized_and_translated(client):
    assert client.summarize("abcdef") == "abc"
    assert client.translate(["a", "é"], source="en", target="de") == [
        "en>de a",
        "en>de é",
    ]


def test_each_row_has_its_own_controls(client):
    texts = client.generate(
        ["abcd", "efgh"],
        [2, 3],
        temperature=[0.5, 1.5],
        top_k=[None, 7],
        top_p=[0.25, None],
        seed=[9, 5],
    )
    assert texts == ["DC t=0.50 k=0 p=0.25 s=9", "HGF t=1.50 k=7 p=1.00 s=5"]


def test_a_limit_beyond_int32_is_none(client):
    controls = {"top_k": 2**40, "top_p": 1, "temperature": 1e300}
    assert client.generate("a", **controls) == f"A t={2**30}.00 k=0 p=1.00 s=0"


def test_complete_tells_all_that_is_known(client):
    assert client.complete(["abc", "defghi"], 4, temperature=0) == [
        Completion("CBA", 3, "stop"),
        Completion("IHGF", 4, "length"),
    ]


def test_ids_go_in_and_come_out_without_padding(client):
    assert client.generate_ids([[1, 2, 3], [4]], 2) == [[3, 2], [4]]
    assert client.generate_ids(np.array([[1, 2]]), temperature=0) == [[2, 1]]
    assert client.generate_ids([[1]], 0) == [[]]


def test_scores_are_arrays_one_shorter_than_the_tokens(client):
    first, second = client.score(["ab", "c"])
    assert first.dtype == np.float32
    # the toy's score of a character is a tenth of its number
    np.testing.assert_array_equal(first, np.float32([98]) * np.float32(-0.1))
    assert second.shape == (0,)
    assert client.score("abc").shape == (2,)


def test_tokenize(client):
    assert client.tokenize("hé") == [104, 233]
    assert client.tokenize(["", "a"]) == [[], [97]]


def test_text_of_any_kind_survives(client):
    text = 'Ünï "quoted" \\ \n\t\0 日本語 👩‍🚀 é'
    assert client.tokenize(text) == [ord(character) for character in text]
    assert client.generate("日本", temperature=0) == "本日"


def test_long_lists_go_in_several_requests_and_come_back_in_order(address, server):
    prompts = [f"{i:03}" for i in range(23)]
    with Client(address, model="docs", batch_size=5) as client:
        seeds = [7 * i for i in range(23)]
        texts = client.generate(prompts, temperature=1, seed=seeds)
        assert [text[:3] for text in texts] == [prompt[::-1] for prompt in prompts]
        assert [int(text.rpartition("=")[2]) for text in texts] == list(
            range(0, 161, 7)
        )
        assert client.tokenize(prompts) == [list(map(ord, p)) for p in prompts]
        assert len(client.score(prompts)) == 23
        assert client.generate_ids([[i] for i in range(23)]) == [[i] for i in range(23)]


def test_threads_share_a_client(client):
    prompts = [f"prompt {i}" for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda p: client.generate(p, temperature=0), prompts))
    assert texts == [prompt.upper()[::-1] for prompt in prompts]


def test_metadata_describes_the_signatures(client):
    signatures = client.metadata()
    assert {"serving_default", "generate", "score"} <= set(signatures)
    assert "__saved_model_init_op" not in signatures
    assert signatures["score"] == SCORE


def test_status_lists_the_versions(client):
    (version,) = client.status()
    assert (version.version, version.state, version.error) == (1, "AVAILABLE", "")
    client.wait_until_ready(timeout=5)


def test_what_the_server_says_is_the_error(address, server):
    with (
        Client(address, model="nobody") as client,
        pytest.raises(ServingError, match="Servable not found") as caught,
    ):
        client.generate("a")
    assert caught.value.code == "NOT_FOUND"
    assert caught.value.message == "Servable not found for request: Latest(nobody)"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with (
        Client(address, model="docs", version=9) as client,
        pytest.raises(ServingError, match=r"Specific\(docs, 9\)"),
    ):
        client.generate("a")
    with (
        Client(address, model="docs", label="stable") as client,
        pytest.raises(ServingError, match="label: stable") as caught,
    ):
        client.generate("a")
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_deadline_that_passes_is_a_timeout(address, server):
    with Client(address, model="docs", timeout=0.5) as client:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="Raise `timeout`"):
            client.generate("a", 2**20)
        assert time.monotonic() - start < 5
        # the server goes on to serve
        assert client.generate("ab", temperature=0) == "BA"


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_no_server_is_told_with_the_way_to_start_one(scheme):
    address = f"{scheme}localhost:{free_port()}"
    with (
        Client(address, model="docs", retries=0) as client,
        pytest.raises(ServingError, match=f"No server answers at {address}") as caught,
    ):
        client.generate("a")
    assert caught.value.code == "UNAVAILABLE"
    assert "--model_name=docs" in caught.value.message
    with (
        Client(address, model="docs") as client,
        pytest.raises(TimeoutError, match=r"isn't ready after 0\.5 seconds"),
    ):
        client.wait_until_ready(timeout=0.5)
    with (
        Client(address, model="docs") as client,
        pytest.raises(ValueError, match="`timeout` must be seconds"),
    ):
        client.wait_until_ready(timeout=float("nan"))


def test_the_port_of_the_other_protocol_is_told(server):
    for address in (server.rest.removeprefix("http://"), f"http://{server.grpc}"):
        with (
            Client(address, model="docs", retries=0) as client,
            pytest.raises(ServingError, match="isn't its port for"),
        ):
            client.generate("a")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_requests_are_sent_again_until_a_server_starts(toys, protocol):
    ports = {"grpc": free_port(), "rest": free_port()}
    start, stop = threading.Event(), threading.Event()

    def run():
        start.wait()
        with serve(toys / "first", port=ports["grpc"], rest_api_port=ports["rest"]):
            stop.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        address = (
            f"{'http://' if protocol == 'rest' else ''}localhost:{ports[protocol]}"
        )
        with Client(address, model="docs", retries=30) as client:
            threading.Timer(0.5, start.set).start()
            assert client.generate("abc", temperature=0) == "CBA"
            client.wait_until_ready()
    finally:
        start.set()
        stop.set()
        thread.join()


class Gateway(threading.Thread):
    """Something before the server that answers with given HTTP statuses in turn."""

    def __init__(self, statuses, body=b"<html>busy</html>"):
        super().__init__(daemon=True)
        self.statuses = list(statuses)
        self.body = body
        self.requests = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self):
        while self.statuses:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, _, rest = data.partition(b"\r\n\r\n")
                length = [
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ]
                while length and len(rest) < length[0]:
                    rest += connection.recv(65536)
                self.requests += 1
                connection.sendall(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                    % (self.statuses.pop(0), len(self.body))
                    + self.body
                )

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.listener.close()


@pytest.mark.parametrize(
    ("status", "retries"), [(429, 2), (502, 1), (503, 0), (504, 1)]
)
def test_passing_http_errors_are_retried_as_often_as_asked(status, retries):
    with Gateway([status] * 4) as gateway:
        with (
            Client(gateway.address, model="docs", retries=retries) as client,
            pytest.raises(ServingError, match=f"HTTP status {status}"),
        ):
            client.generate("a")
        assert gateway.requests == retries + 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
def test_other_http_errors_are_not(status):
    with Gateway([status] * 2, b'{"error": "no"}') as gateway:
        with (
            Client(gateway.address, model="docs") as client,
            pytest.raises(ServingError, match="no"),
        ):
            client.generate("a")
        assert gateway.requests == 1


def test_a_server_that_gave_up_itself_is_a_timeout_and_not_asked_again():
    with Gateway([504] * 2, b'{"error": "Timed out"}') as gateway:
        with (
            Client(gateway.address, model="docs") as client,
            pytest.raises(TimeoutError, match="rest_api_timeout_in_ms"),
        ):
            client.generate("a")
        assert gateway.requests == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": 3}, TypeError, "`prompts` must be a string"),
        ({"prompts": b"a"}, TypeError, "`prompts` must be a string"),
        ({"prompts": ["a", None]}, TypeError, "Received at 1: None"),
        ({"prompts": "a\ud800"}, ValueError, "lone surrogates"),
        ({"max_new_tokens": -1}, ValueError, "`max_new_tokens` must be"),
        ({"max_new_tokens": 1.5}, ValueError, "`max_new_tokens` must be"),
        ({"max_new_tokens": [1]}, ValueError, "each of the 2 prompts"),
        ({"temperature": float("nan")}, ValueError, "`temperature` must be"),
        ({"temperature": [0.5, -1]}, ValueError, "Received: -1"),
        ({"temperature": "hot"}, ValueError, "Received"),
        ({"top_k": 0}, ValueError, "`top_k` must be"),
        ({"top_p": 0.0}, ValueError, "`top_p` must be"),
        ({"top_p": 1.01}, ValueError, "`top_p` must be"),
        ({"seed": -1}, ValueError, "`seed` must be"),
        ({"seed": 2**31}, ValueError, "`seed` must be"),
        ({"seed": 0.5}, ValueError, "`seed` must be"),
        ({"seed": [1, 2, 3]}, ValueError, "Received: 3 values"),
        ({"temprature": 1.0}, TypeError, "Did you mean 'temperature'"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_sent(arguments, error, message):
    with (
        Client("http://localhost:1", model="docs") as client,
        pytest.raises(error, match=message),
    ):
        client.generate(**{"prompts": ["a", "b"]} | arguments)


@pytest.mark.parametrize("method", ["generate", "complete", "generate_ids"])
@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"min_p": 0.1}, "`min_p` is fixed .* give it to `lm.export`"),
        ({"repetition_penalty": 1.2}, "`repetition_penalty` is fixed"),
        ({"stop_ids": [3]}, "`stop_ids` is fixed"),
        ({"num_return_sequences": 2}, "`num_return_sequences` .* repeat the prompt"),
    ],
)
def test_what_requests_cannot_choose_is_refused(method, control, message):
    with (
        Client("http://localhost:1", model="docs") as client,
        pytest.raises(ValueError, match=message),
    ):
        getattr(client, method)([[1]] if method == "generate_ids" else "a", **control)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], r"For one prompt write \[ids\]"),
        ("ab", "must be a list of prompts"),
        ([[1], []], "Prompt 1 is empty"),
        ([[1, -1]], "must be from 0"),
        ([[1.0]], "must be integers"),
    ],
)
def test_bad_ids_are_told(ids, message):
    with (
        Client("http://localhost:1", model="docs") as client,
        pytest.raises(ValueError, match=message),
    ):
        client.generate_ids(ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "localhost"}, "`address` must be"),
        ({"address": "http://"}, "`address` must be"),
        ({"address": 8500}, "`address` must be"),
        ({"model": ""}, "`model` must be"),
        ({"version": 1, "label": "a"}, "not both"),
        ({"version": -1}, "`version` must be"),
        ({"version": True}, "`version` must be"),
        ({"timeout": 0}, "`timeout` must be"),
        ({"retries": -1}, "`retries` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"credentials": object()}, "`credentials` are for gRPC"),
    ],
)
def test_bad_options_are_told(arguments, message):
    options = {"address": "http://localhost:8501", "model": "docs"} | arguments
    with pytest.raises(ValueError, match=message):
        Client(**options)


def test_rest_loads_neither_tensorflow_nor_grpc():
    script = (
        "import sys, keras_gpt.tf_serving as serving\n"
        "serving.Client('http://localhost:1', model='docs').close()\n"
        "assert not {'tensorflow', 'grpc', 'tensorflow_serving'} & set(sys.modules)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
