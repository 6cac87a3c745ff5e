"""Answer requests to a SavedModel by TensorFlow's C API, in a process of its own.

    python -m tests.export.answer FOLDER [--xla] < requests.json > answers.json

Requests are `[[signature, {input: values}], ...]`; an answer is `{output: values}`, or
`{"error": message}`. Neither TensorFlow's Python nor Keras is imported here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.serving.capi import DTYPES, Model, StatusError, load_tensorflow

# `make test-tf-2.20` sets it: another Python with another TensorFlow
PYTHON = os.environ.get("KERAS_GPT_SERVING_PYTHON", sys.executable)


def answer(folder, requests, *, xla=False):
    """What the SavedModel in `folder` answers to each of the requests."""
    done = subprocess.run(
        [PYTHON, "-m", "tests.export.answer", str(folder), *(["--xla"] * xla)],
        input=json.dumps(requests),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


def main():
    load_tensorflow(xla="--xla" in sys.argv)
    answers = []
    with Model(sys.argv[1]) as model:
        for signature, inputs in json.load(sys.stdin):
            known = model.signatures[signature].inputs
            feeds = {
                name: np.array(values, DTYPES[known[name].dtype])
                for name, values in inputs.items()
            }
            try:
                outputs = model.run(signature, feeds)
            except StatusError as error:
                answers.append({"error": str(error)})
            else:
                answers.append({k: _plain(v.tolist()) for k, v in outputs.items()})
    loaded = {"keras", "tensorflow", "tensorflow_text"} & set(sys.modules)
    if loaded:
        sys.exit(f"These must not be imported here: {loaded}")
    json.dump(answers, sys.stdout)


def _plain(values):
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values.decode("utf-8") if isinstance(values, bytes) else values


if __name__ == "__main__":
    main()
