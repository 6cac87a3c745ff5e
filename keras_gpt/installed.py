"""What is installed: a backend for Keras, and what only some of our work needs."""

import json
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

_BACKENDS = ("tensorflow", "jax", "torch")  # Keras's default is the first


def choose_backend() -> None:
    """Let Keras, before it is imported, take a backend that is there.

    What the environment variable `KERAS_BACKEND` or Keras's own file says is taken. Of
    that file TensorFlow isn't a choice, as Keras itself writes it there: without
    TensorFlow, JAX is taken, or else PyTorch.

    Raises:
        ImportError: None is installed, or not the one that was chosen.
    """
    chosen = os.environ.get("KERAS_BACKEND")
    if "keras" in sys.modules:
        taken = sys.modules["keras"].backend.backend()
        if chosen not in (None, "", taken):
            warnings.warn(
                f"KERAS_BACKEND says {chosen}, but Keras was imported before with "
                f"{taken}, and keeps it. Set it before the first import of Keras; in a "
                "notebook, restart it first.",
                stacklevel=3,
            )
        return
    chosen = chosen or _read_choice()
    installed = [name for name in _BACKENDS if find_spec(name) is not None]
    if not installed:
        raise ImportError(
            "Keras needs a backend, and none is installed. Run: pip install jax, or "
            "pip install 'keras-gpt[torch]', or 'keras-gpt[tensorflow]'"
        )
    if chosen is None:
        os.environ["KERAS_BACKEND"] = installed[0]
    elif chosen in _BACKENDS and chosen not in installed:
        package = "jax" if chosen == "jax" else f"'keras-gpt[{chosen}]'"
        raise ImportError(
            f"KERAS_BACKEND or Keras's own file says {chosen}, which isn't installed. "
            f"Run: pip install {package}, or choose another: {', '.join(installed)}."
        )


def require(extra: str, what: str, *modules: str) -> None:
    """Raise an error that names the extra where a module isn't there.

    Args:
        extra: Of `pip install 'keras-gpt[EXTRA]'`.
        what: What needs them, as the error begins.
        modules: Names to import, not within another.

    Raises:
        ImportError: One of them isn't installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ImportError(
                f"{what} needs {module}. Run: pip install 'keras-gpt[{extra}]'"
            )


def _read_choice():
    """The backend in Keras's file, or `None`."""
    folder = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        backend = json.loads(Path(folder, "keras.json").read_text("utf-8"))["backend"]
    except (OSError, ValueError, KeyError, RuntimeError):  # the last: there is no home
        return None
    return None if backend == "tensorflow" else backend
