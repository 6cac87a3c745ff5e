"""`OpenVINOModel`: a GPT that OpenVINO runs on a CPU, as it was exported."""

# Axes: b batch, t new position, v vocabulary

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import keras
import numpy as np

from keras_gpt.config import GPTConfig
from keras_gpt.installed import require

GRAPH_FILE = "openvino_model.xml"  # as openvino_genai names it
_SCORED_AT_ONCE = 2**24  # logits, 64 MB
_OPTIONS = {
    # the fastest answer, not the most answers at once
    "PERFORMANCE_HINT": "LATENCY",
    # OpenVINO takes bfloat16 by itself where a processor multiplies that faster
    "INFERENCE_PRECISION_HINT": "f32",
}
_EXACT = {"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


class OpenVINOModel:
    """A GPT that OpenVINO runs: it generates and scores where a `GPT` does.

    What else a `GPT` can, such as training, it can't: `AttributeError`.

    Args:
        directory: The folder of `LanguageModel.export` with `flavour="openvino"`.
        config: The architecture.
        weights: What they are stored in: `"float32"`, `"int8"` or `"int4"`.
        num_parameters: How many they are.

    Raises:
        FileNotFoundError: There is no graph in the folder.
        ImportError: OpenVINO isn't installed.
    """

    def __init__(
        self,
        directory: str | Path,
        config: GPTConfig,
        weights: str,
        num_parameters: int,
    ):
        self.config = config
        self.quantization = None if weights == "float32" else weights
        self.dtype_policy = keras.dtype_policies.get("float32")
        self._num_parameters = num_parameters
        self._path = Path(directory) / GRAPH_FILE
        if not self._path.is_file():
            raise FileNotFoundError(f"{self._path} is missing. Export the model again.")
        self._options = _OPTIONS | (_EXACT if weights == "float32" else {})
        self._last = self._compile(last_only=True)
        self._all = None

    def __getattr__(self, name):
        raise AttributeError(
            f"A model that OpenVINO runs has no {name!r}: it generates and scores. "
            "Load the model that it was exported from."
        )

    @property
    def variables(self) -> list:
        """None: the weights are OpenVINO's."""
        return []

    def count_params(self) -> int:
        """How many weights there are."""
        return self._num_parameters

    def prefill(self, token_ids: np.ndarray, lengths: np.ndarray) -> tuple:
        """Read prompts.

        Args:
            token_ids: `(b, t)`, padded on the right.
            lengths: `(b,)`, how many are a prompt's own.

        Returns:
            Logits of the token after each prompt `(b, v)`, which the next pass
            overwrites, and the cache.
        """
        t = lengths.max()
        position = np.arange(t) - (t - lengths)[:, None]  # padded on the left
        ids = np.take_along_axis(token_ids, np.maximum(position, 0), axis=1)
        request = self._last.create_infer_request()
        return _run(request, ids, position)[:, -1], request

    def decode(self, token_ids: np.ndarray, cache, position: np.ndarray) -> tuple:
        """Read one more token a row.

        Args:
            token_ids: `(b,)`.
            cache: What `prefill` or `decode` returned.
            position: `(b,)`, the place of each in its row's text.

        Returns:
            As `prefill`.
        """
        return _run(cache, token_ids[:, None], position[:, None])[:, -1], cache

    def read(self, token_ids: np.ndarray) -> Iterator[np.ndarray]:
        """Logits of texts `(b, t)`, in parts: `(b, part of t, v)` each."""
        if self._all is None:
            self._all = self._compile(last_only=False)
        request = self._all.create_infer_request()
        b, t = token_ids.shape
        size = max(1, _SCORED_AT_ONCE // (b * self.config.vocab_size))
        for start in range(0, t, size):
            part = token_ids[:, start : start + size]
            place = np.arange(start, start + part.shape[1])
            yield _run(request, part, np.broadcast_to(place, part.shape))

    def _compile(self, last_only):
        require("openvino", str(self._path), "openvino")
        core = _core()
        graph = core.read_model(self._path)
        if last_only:
            _keep_last(graph)
        return core.compile_model(graph, "CPU", self._options)


@cache
def _core():
    """What compiles graphs, for as long as the process runs.

    The thread that compiled first handles signals on a stack of OpenVINO's. It is
    freed with the last model, and where another thread did that, the next Ctrl-C was a
    crash (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def _run(request, token_ids, position):
    """Logits `(b, t, v)` of a pass over new tokens `(b, t)`.

    There is no mask: the graph sees by the positions what is padding.
    """
    inputs = {
        "input_ids": token_ids.astype("int64"),
        "position_ids": position.astype("int64"),
        "beam_idx": np.arange(len(token_ids), dtype="int32"),
    }
    return request.infer(inputs, share_inputs=True, share_outputs=True)["logits"]


def _keep_last(graph):
    """Let the output projection, much of a small GPT, read each row's last token."""
    from openvino import opset13

    product = graph.output("logits").get_node().input_value(0).get_node()
    last = opset13.gather(product.input_value(0), np.array([-1]), np.int64(1))
    product.input(0).replace_source_output(last.output(0))
    graph.validate_nodes_and_infer_types()
