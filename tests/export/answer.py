"""Answer requests to SavedModels by TensorFlow's C API, in a process of its own.

Neither TensorFlow's Python nor Keras is imported there. It reads lines of JSON,
`[folder, [[signature, {input: values}], ...]]`, and writes one for each: a list of
`{output: values}`, or `{"error": message}`.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

# `make test-tf-2.20` sets it: another Python with another TensorFlow
PYTHON = os.environ.get("KERAS_GPT_SERVING_PYTHON", sys.executable)


def answer(folder, requests, *, xla=False):
    """What the SavedModel in `folder` answers to each of the requests."""
    process = _start(xla)
    process.stdin.write(json.dumps([str(folder), requests]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@functools.cache
def _start(xla):
    """The process, which keeps each model for the requests that follow."""
    process = subprocess.Popen(
        [PYTHON, "-m", "tests.export.answer", *(["--xla"] * xla)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
        text=True,
    )
    atexit.register(process.communicate)
    return process


def main():
    from tests.tf_serving.capi import Model, load_tensorflow

    load_tensorflow(xla="--xla" in sys.argv)
    find = functools.cache(Model)
    for line in sys.stdin:
        folder, requests = json.loads(line)
        answers = [_call(find(folder), *request) for request in requests]
        loaded = {"keras", "tensorflow_text"} & set(sys.modules)
        if loaded or hasattr(sys.modules["tensorflow"], "function"):
            sys.exit(f"These must not be imported here: {loaded or 'tensorflow'}")
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def _call(model, signature, inputs):
    from tests.tf_serving.capi import StatusError

    try:
        outputs = model.run(signature, inputs)
    except StatusError as error:
        return {"error": str(error)}
    return {name: _plain(array.tolist()) for name, array in outputs.items()}


def _plain(values):
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values.decode("utf-8") if isinstance(values, bytes) else values


if __name__ == "__main__":
    main()
