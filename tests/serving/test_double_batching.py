"""Batching and metrics of the serving double (or of the real server)."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.serving.calls import double_only, post, texts
from tests.serving.server import StartError, serve


def test_requests_are_counted(toys, tmp_path):
    config = tmp_path / "monitoring.config"
    config.write_text('prometheus_config { enable: true, path: "/metrics" }')
    with serve(toys / "first", f"--monitoring_config_file={config}") as server:
        texts(server, "a")
        texts(server, "b")
        post(server, {})
        page = requests.get(f"{server.rest}/metrics", timeout=10).text
    name = ":tensorflow:serving:request_count"
    assert f"# TYPE {name} counter" in page
    assert f'{name}{{model_name="docs",status="OK"}} 2' in page
    assert f'{name}{{model_name="docs",status="INVALID_ARGUMENT"}} 1' in page


def batching(tmp_path, *lines):
    path = tmp_path / "batching.txt"
    path.write_text("\n".join(lines))
    return "--enable_batching", f"--batching_parameters_file={path}"


def test_batched_rows_give_what_each_gives_alone(toys, tmp_path):
    flags = batching(
        tmp_path,
        "max_batch_size { value: 8 }",
        "batch_timeout_micros { value: 200000 }",
        "num_batch_threads { value: 2 }",
        "allowed_batch_sizes: 4",
        "allowed_batch_sizes: 8",
    )
    rows = [
        {
            "prompt": f"prompt number {i}",
            "max_new_tokens": i,
            "temperature": i / 4,
            "top_k": i,
            "top_p": 0.5,
            "seed": 100 + i,
        }
        for i in range(11)  # a full batch, and one padded from 3 to 4
    ]

    def ask(server, row):
        body = {"signature_name": "generate", "instances": [row]}
        status, answer = post(server, body)
        assert status == 200, answer
        return answer["predictions"]

    with serve(toys / "first") as server:
        alone = [ask(server, row) for row in rows]
    with serve(toys / "first", *flags) as server:
        start = time.monotonic()
        with ThreadPoolExecutor(11) as pool:
            assert list(pool.map(lambda row: ask(server, row), rows)) == alone
        # 11 waits of 0.2 s one after the other would take longer
        assert time.monotonic() - start < 2
        body = {"instances": ["a"] * 9}
        status, answer = post(server, body)
        assert status == 400
        assert "larger than maximum input batch size 8" in answer["error"]


def test_a_batch_of_different_shapes_needs_padding_allowed(toys, tmp_path):
    controls = {"max_new_tokens": 9, "temperature": 0, "top_k": 0}
    controls |= {"top_p": 1, "seed": 0}
    requests_ = [
        {"token_ids": [1, 2, 3], "lengths": 3} | controls,
        {"token_ids": [7, 8], "lengths": 2} | controls,
    ]
    lines = ["max_batch_size { value: 2 }", "batch_timeout_micros { value: 5000000 }"]

    def ask_both(*flags):
        with (
            serve(toys / "first", *flags) as server,
            ThreadPoolExecutor(2) as pool,
        ):
            bodies = [
                {"signature_name": "generate_ids", "instances": [r]} for r in requests_
            ]
            return list(pool.map(lambda body: post(server, body), bodies))

    for status, answer in ask_both(*batching(tmp_path, *lines)):
        assert status == 400
        assert "Set pad_variable_length_inputs to true" in answer["error"]
    pads = "pad_variable_length_inputs: true"
    (first, second) = ask_both(*batching(tmp_path, *lines, pads))
    assert first == (200, {"predictions": [{"token_ids": [3, 2, 1], "num_tokens": 3}]})
    # the answer is as wide as the batch's, so num_tokens says what to take
    assert second == (
        200,
        {"predictions": [{"token_ids": [8, 7, -1], "num_tokens": 2}]},
    )


@double_only
def test_batching_parameters_must_agree(toys, tmp_path):
    flags = batching(tmp_path, "max_batch_size { value: 8 }", "allowed_batch_sizes: 4")
    with (
        pytest.raises(StartError, match="must match max_batch_size"),
        serve(toys / "first", *flags),
    ):
        pass
    with (
        pytest.raises(StartError, match="without setting"),
        serve(toys / "first", flags[1]),
    ):
        pass
