"""What the serving double (or the real server) loads, when, and how it ends."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.serving.calls import double_only, get, post, texts, wait_for
from tests.serving.server import StartError, serve


def test_the_newest_version_is_served_and_others_only_when_asked_for(toys):
    with serve(toys / "docs") as server:
        assert texts(server, "ab") == ["v2BA"]
        assert post(server, {"instances": ["a"]}, "docs/versions/1")[0] == 404


def test_a_new_version_takes_over_without_a_gap(toys, tmp_path):
    base = tmp_path / "docs"
    shutil.copytree(toys / "docs" / "1", base / "1")
    (base / "tmp-2").mkdir()  # not a number: not a version
    with (
        serve(base, "--file_system_poll_wait_seconds=1") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        seen = []

        def ask():
            while "v2BA" not in seen:
                seen.extend(texts(server, "ab"))

        asking = pool.submit(ask)
        time.sleep(0.2)
        shutil.copytree(toys / "docs" / "2", tmp_path / "written")
        (tmp_path / "written").rename(base / "2")
        asking.result(timeout=60)
        assert set(seen) == {"BA", "v2BA"}

        def states():
            _, answer = get(server, "/v1/models/docs")
            return {
                item["version"]: item["state"]
                for item in answer["model_version_status"]
            }

        wait_for(lambda: states() == {"1": "END", "2": "AVAILABLE"})


def write_models_config(tmp_path, base, policy="", labels=""):
    path = tmp_path / "models.config"
    path.write_text(
        f"""
        model_config_list {{
          config {{
            name: "docs"  base_path: "{base}"  model_platform: "tensorflow"
            {policy}
            {labels}
          }}
        }}
        """
    )
    return f"--model_config_file={path}"


def test_a_configuration_chooses_and_labels_versions(toys, tmp_path):
    base = toys / "docs"
    flag = write_models_config(
        tmp_path,
        base,
        "model_version_policy { specific { versions: 1 versions: 2 } }",
        'version_labels { key: "stable" value: 1 }'
        ' version_labels { key: "canary" value: 2 }',
    )
    # The server takes labels at its start only with this flag.
    allow = "--allow_version_labels_for_unavailable_models"
    with serve(None, flag, allow, folders=[toys]) as server:
        assert texts(server, "ab") == ["v2BA"]
        assert texts(server, "ab", path="docs/versions/1") == ["BA"]
        assert texts(server, "ab", path="docs/labels/stable") == ["BA"]
        assert texts(server, "ab", path="docs/labels/canary") == ["v2BA"]
        assert post(server, {"instances": ["a"]}, "docs/labels/none") == (
            400,
            {"error": "Unrecognized servable version label: none"},
        )


@double_only
def test_policies_all_and_latest(toys, tmp_path):
    for policy, expected in (("all {}", [1, 2]), ("latest { num_versions: 1 }", [2])):
        flag = write_models_config(
            tmp_path, toys / "docs", f"model_version_policy {{ {policy} }}"
        )
        with serve(None, flag) as server:
            _, answer = get(server, "/v1/models/docs")
            versions = [int(v["version"]) for v in answer["model_version_status"]]
            assert sorted(versions) == expected


@double_only
def test_wrong_configurations_end_the_start(toys, tmp_path):
    flag = write_models_config(
        tmp_path, toys / "docs", labels='version_labels { key: "old" value: 1 }'
    )
    with (
        pytest.raises(StartError, match="not currently available for inference"),
        serve(None, flag),
    ):
        pass
    flag = write_models_config(tmp_path, toys / "docs", "no_such_field: 1")
    with pytest.raises(StartError, match="no_such_field"), serve(None, flag):
        pass


# Loading


def test_xla_must_not_be_needed(toys):
    """As in the server: such a model loads and then fails when it is called."""
    with serve(toys / "compiled") as server:
        status, answer = post(server, {"instances": [1.0]})
        assert status >= 400
        assert "XLA" in answer["error"]
    with serve(toys / "compiled", "--xla_cpu_compilation_enabled") as server:
        assert post(server, {"instances": [1.5]}) == (200, {"predictions": [3.0]})


def test_warmup_requests_are_replayed_before_a_version_serves(toys, tmp_path):
    from tests.serving import toy

    shutil.copytree(toys / "docs" / "1", tmp_path / "docs" / "1")
    toy.write_warmup(tmp_path / "docs" / "1", ["a", "b"])
    with serve(tmp_path / "docs") as server:
        assert texts(server, "ab") == ["BA"]


@double_only
def test_a_warmup_request_that_fails_keeps_a_version_from_loading(toys, tmp_path):
    from tests.serving import toy

    base = tmp_path / "docs"
    shutil.copytree(toys / "docs" / "1", base / "1")
    toy.write_warmup(base / "1", ["a"], signature="none")
    with pytest.raises(StartError, match=r'key "none" not found'), serve(base):
        pass
    with serve(base, "--enable_model_warmup=false") as server:
        assert texts(server, "ab") == ["BA"]
    warmup = base / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warmup.write_bytes(warmup.read_bytes()[:-1])
    with pytest.raises(StartError, match="DATA_LOSS"), serve(base):
        pass


@double_only
def test_a_version_that_fails_leaves_the_one_before_in_service(toys, tmp_path):
    base = tmp_path / "docs"
    shutil.copytree(toys / "docs" / "1", base / "1")
    with serve(base, "--file_system_poll_wait_seconds=0.1") as server:
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "saved_model.pb").write_bytes(b"damaged")
        (tmp_path / "2").rename(base / "2")

        def failed():
            _, answer = get(server, "/v1/models/docs/versions/2")
            states = [v["state"] for v in answer.get("model_version_status", [])]
            return states == ["END"]

        wait_for(failed)
        assert texts(server, "ab") == ["BA"]


# The loader and the process


@double_only
def test_it_says_what_it_is(server):
    assert server.log[0] == "SERVING DOUBLE for tests: not TensorFlow Serving"


@double_only
def test_it_ends_when_the_process_that_started_it_is_killed(toys):
    script = (
        "import sys, time\n"
        "from tests.serving.server import serve\n"
        f"with serve({str(toys / 'first')!r}) as server:\n"
        "    print(server.rest, flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        address = process.stdout.readline().strip()
        assert requests.get(f"{address}/v1/models/docs", timeout=10).ok
        process.kill()

    def is_gone():
        try:
            requests.get(f"{address}/v1/models/docs", timeout=10)
        except requests.ConnectionError:
            return True
        return False

    wait_for(is_gone)


@double_only
def test_the_loader_serves_threads_without_tensorflow_python(toys):
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from tests.serving.capi import Model, StatusError, graph_ops

path, compiled = sys.argv[1:]
assert "UnicodeDecode" in graph_ops(path)
assert not [op for op in graph_ops(path) if "Xla" in op]
assert "_XlaMustCompile" in graph_ops(compiled)

with Model(path) as model:
    assert set(model.signatures["tokenize"].outputs) == {"token_ids", "num_tokens"}
    outputs = model.run("tokenize", {"text": [b"abc", b"d"]})
    assert outputs["token_ids"].tolist() == [[97, 98, 99], [100, -1, -1]]
    assert outputs["num_tokens"].dtype == np.int32
    assert model.run("echo", {"data": []})["data_bytes"].shape == (0,)

    def call(i):
        text = str(i).encode() * 20  # too long to be stored within the string's record
        outputs = model.run("echo", {"data": [text, b"", text * 50]})
        assert outputs["data_bytes"].tolist() == [text, b"", text * 50]
        numbers = np.full(1000 + i, i, "float32")
        assert model.run("total", {"numbers": numbers}, ["sum"])["sum"] == numbers.sum()

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
assert not {"tensorflow", "keras", "jax"} & set(sys.modules)
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            str(toys / "docs" / "1"),
            str(toys / "compiled" / "1"),
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["INVALID_ARGUMENT", "DEADLINE_EXCEEDED"]
