"""Keeping off standard error what TensorFlow's C++ code says of its own start."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# By absl before it knows of a level, and by the SentencePiece in tensorflow-text
_LINES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog.*\n"
    rb"|I\d{4} \d\d:\d\d:.*\.cc:\d+\] .*\n"
    rb"|\w+\.cc\(\d+\) LOG\(INFO\) .*\n"
)


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Leave out what TensorFlow says for information while it is imported or begins.

    Where nobody has set the environment variable `TF_CPP_MIN_LOG_LEVEL`, it becomes 3;
    but what TensorFlow says of oneDNN and CUDA comes by a route that no level reaches.
    With 0 all is shown. What else is written to standard error meanwhile comes at the
    end.
    """
    level = os.environ.get(_LEVEL)
    if level is None or (level == "1" and "jax" in sys.modules):  # JAX's own default
        level = os.environ[_LEVEL] = "3"
    with contextlib.ExitStack() as stack:
        if level != "0":
            # without a standard error, or without room for a file, nothing is hidden
            with contextlib.suppress(OSError):
                stack.enter_context(_filtered_errors())
        yield


@contextlib.contextmanager
def _filtered_errors():
    with (
        tempfile.TemporaryFile() as written,
        os.fdopen(os.dup(2), "wb") as standard_error,
    ):
        _flush()
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(standard_error.fileno(), 2)
            written.seek(0)
            standard_error.write(_LINES.sub(b"", written.read()))


def _flush():
    if sys.stderr is not None:  # as under pythonw
        sys.stderr.flush()
