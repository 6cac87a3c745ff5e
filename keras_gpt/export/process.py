"""Handing a language model to another backend than this process has."""

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import tempfile

from keras_gpt.language_model import LanguageModel

_REFUSED = 2  # the status of a process that has written the error to its output


def call_on_backend(
    backend: str,
    module: str,
    name: str,
    lm: LanguageModel,
    *arguments,
    dtype: str | None = None,
    progress: bool,
) -> None:
    """Call a function in a process with another Keras backend.

    Args:
        backend: Of Keras there.
        module: Where the function is.
        name: The function's name.
        lm: A `LanguageModel`, which the function is given.
        *arguments: What else it is given.
        dtype: Of the model there. Defaults to that which it has.
        progress: Whether its standard error is shown.

    Raises:
        ValueError: The function did.
        OSError: The function did.
        RuntimeError: It failed otherwise.
    """
    code = "from keras_gpt.export import process; process.answer_call()"
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "KERAS_BACKEND": backend}
    with tempfile.TemporaryDirectory() as folder:
        lm.save(folder)
        process = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps((module, name, folder, dtype, arguments)),
            stdout=subprocess.PIPE,
            stderr=None if progress else subprocess.PIPE,
            env=environment,
            check=False,
        )
    if process.returncode == _REFUSED:
        raise pickle.loads(process.stdout)
    if process.returncode != 0:
        raise RuntimeError(
            f"The process that exports ended with status {process.returncode}. "
            f"{(process.stderr or b'').decode(errors='replace')}"
        )


def answer_call() -> None:
    """Be the process in which the function is called.

    It reads the call from its standard input. An error that a user can mend it writes
    to its output; others are bugs, and keep their traceback.
    """
    module, name, folder, dtype, arguments = pickle.load(sys.stdin.buffer)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            lm = LanguageModel.load(folder, dtype=dtype)
            getattr(importlib.import_module(module), name)(lm, *arguments)
    except (ValueError, OSError) as error:
        pickle.dump(error, sys.stdout.buffer)
        sys.exit(_REFUSED)
