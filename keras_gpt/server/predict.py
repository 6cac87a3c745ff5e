"""TensorFlow Serving's predict route, as the signatures of an exported model have it.

So `keras_gpt.tf_serving.Client`, or another client of TensorFlow Serving over REST,
calls this server while something is built, and TensorFlow Serving when it is in use.

References:
    - [TensorFlow Serving's REST API](https://www.tensorflow.org/tfx/serving/api_rest)
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keras_gpt.controls import CONTROLS, check_control
from keras_gpt.export.settings import OWN, ROW_CONTROLS
from keras_gpt.language_model.completion import encode_messages
from keras_gpt.server.errors import ApiError
from keras_gpt.server.prompts import check_limit, encode_texts, make_choice
from keras_gpt.server.scheduler import Choice, Piece
from keras_gpt.server.settings import Settings
from keras_gpt.server.whole import NEW_TOKENS, WHOLE
from keras_gpt.tasks.prompts import ask

_SIGNATURES = {  # the inputs that a request must have
    "serving_default": ("prompt",),
    "generate": ("prompt",),
    "generate_ids": ("token_ids", "lengths"),
    "chat": ("roles", "contents"),
    "chat_with_controls": ("roles", "contents"),
    **WHOLE,
}
_WITH_CONTROLS = ("generate", "generate_ids", "chat_with_controls")
_WRITTEN = ("text", "num_tokens", "finish_reason")
_OUTPUTS = {  # of the signatures that give something else
    "generate_ids": ("token_ids", "log_probs", "num_tokens"),
    "score": ("log_probs", "token_ids", "num_tokens"),
    "tokenize": ("token_ids", "num_tokens"),
    "summarize": ("text",),
    "translate": ("text",),
}
_DTYPES = {  # of what is no string
    **{name: CONTROLS[name].dtype for name in ROW_CONTROLS},
    **dict.fromkeys(("token_ids", "lengths", "num_tokens"), "int32"),
    "log_probs": "float32",
}
_DTYPE_NAMES = {"int32": "DT_INT32", "float32": "DT_FLOAT", "string": "DT_STRING"}
_MATRICES = ("token_ids", "log_probs", "roles", "contents")


class PredictRequest(BaseModel):
    """What a signature is given: rows as `instances`, or columns as `inputs`."""

    model_config = ConfigDict(extra="forbid")

    signature_name: str = "serving_default"
    instances: Annotated[list[Any], Field(min_length=1)] | None = None
    inputs: Any = None

    @classmethod
    def read(cls, body: bytes) -> "PredictRequest":
        """A request from its JSON.

        Raises:
            ApiError: It is none.
        """
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ApiError(400, f"{where or 'The body'}: {first['msg']}.") from error
        if request.signature_name not in _SIGNATURES:
            raise ApiError(
                400,
                f"There is no signature {request.signature_name!r}. This server has "
                f"{', '.join(_SIGNATURES)}.",
            )
        return request

    def columns(self, needed: Sequence[str] | None = None) -> dict[str, list]:
        """A list with a value for each row, for each input that is given.

        Args:
            needed: The inputs that must be there, by default the signature's.

        Raises:
            ApiError: One is missing, unknown, or has another length.
        """
        needed = needed or _SIGNATURES[self.signature_name]
        if (self.instances is None) == (self.inputs is None):
            raise ApiError(400, "Give either `instances` or `inputs`.")
        if self.instances is not None:
            rows = [
                r if isinstance(r, dict) else {needed[0]: r} for r in self.instances
            ]
            if any(row.keys() != rows[0].keys() for row in rows):
                raise ApiError(400, "All `instances` must have the same inputs.")
            columns = {name: [row[name] for row in rows] for name in rows[0]}
        else:
            is_named = isinstance(self.inputs, dict)
            columns = self.inputs if is_named else {needed[0]: self.inputs}
        allowed = {*needed, *_find_controls(self.signature_name)}
        for name in (*needed, *columns):
            if name not in columns:
                raise ApiError(400, f"The input {name!r} is missing.")
            if name not in allowed:
                raise ApiError(
                    400, f"There is no input {name!r} of {self.signature_name!r}."
                )
            column = columns[name]
            if not isinstance(column, list) or len(column) != len(columns[needed[0]]):
                raise ApiError(400, f"{name!r} must be a list with a value a row.")
        if not columns[needed[0]]:
            raise ApiError(400, f"{needed[0]!r} must have at least one row.")
        return columns


def find_whole(
    lm, settings: Settings, request: PredictRequest
) -> tuple[str, dict[str, list[str]]] | None:
    """The signature of `WHOLE` that is asked for, and its inputs; `None` for another.

    Args:
        lm: A `LanguageModel`.
        settings: The server's.
        request: The request.

    Raises:
        ApiError: An input is wrong, or the model has no such signature.
    """
    name = request.signature_name
    if name == "serving_default":
        name = lm.task
    if name not in WHOLE:
        return None
    if name not in _find_signatures(lm):
        raise ApiError(
            400, f"There is no signature {name!r}: it wasn't tuned for that."
        )
    needed = _find_inputs(lm, request.signature_name)
    columns = request.columns(needed)
    for column, texts in columns.items():
        for given in texts:
            _check_text(given, column)
    columns["text"] = columns.pop(needed[0])
    num_rows = len(columns["text"])
    check_limit(settings, "max_choices", num_rows, "inputs")
    if len(needed) < len(WHOLE[name]):
        [pair] = lm.tasks[name]["languages"]
        pairs = zip(WHOLE[name][1:], pair, strict=True)
        columns |= {key: [code] * num_rows for key, code in pairs}
    return name, columns


def make_predictions(lm, settings: Settings, request: PredictRequest) -> list[Choice]:
    """What each row of a request asks for.

    Args:
        lm: A `LanguageModel`.
        settings: The server's.
        request: The request.

    Raises:
        ApiError: A row is wrong, or asks for more than the server gives.
    """
    columns = request.columns()
    signature = request.signature_name
    num_rows = len(next(iter(columns.values())))
    check_limit(settings, "max_choices", num_rows, "inputs")
    names = [name for name in ROW_CONTROLS if name in columns]
    controls = [
        _read_controls({name: columns[name][row] for name in names})
        for row in range(num_rows)
    ]
    for given in controls:
        check_limit(settings, "max_tokens", given["max_new_tokens"], "max_new_tokens")
    if signature == "generate_ids":
        pairs = zip(columns["token_ids"], columns["lengths"], strict=True)
        prompts = encode_texts(lm, [_unpad(*pair) for pair in pairs], "token_ids")
    elif signature.startswith("chat"):
        pairs = zip(columns["roles"], columns["contents"], strict=True)
        conversations = [_read_messages(*pair) for pair in pairs]
        prompts = _encode_chats(lm, conversations, controls)
    else:
        texts = columns["prompt"]
        for text in texts:
            _check_text(text, "prompt")
        if signature == "generate" or lm.task == "generate":
            prompts = encode_texts(lm, texts)
        else:
            conversations = [ask(lm, "complete", text, {}) for text in texts]
            prompts = _encode_chats(lm, conversations, controls)
    models = [_choose(lm, n) for n in columns.get("adapter", [""] * num_rows)]
    return [
        make_choice(*row, given)
        for row, given in zip(zip(models, prompts, strict=True), controls, strict=True)
    ]


def write_predictions(
    request: PredictRequest, answers: Sequence[Sequence[Piece]]
) -> dict[str, Any]:
    """The body of an answer.

    Args:
        request: The request.
        answers: The pieces of each row.
    """
    ids = [[i for piece in pieces for i in piece.ids] for pieces in answers]
    columns: dict[str, list] = {"num_tokens": [len(row) for row in ids]}
    if request.signature_name == "generate_ids":
        longest = max(columns["num_tokens"])
        log_probs = [
            [x for piece in pieces for x in piece.log_probs] for pieces in answers
        ]
        columns["token_ids"] = [row + [-1] * (longest - len(row)) for row in ids]
        columns["log_probs"] = [row + [0.0] * (longest - len(row)) for row in log_probs]
    else:
        columns["text"] = ["".join(p.text for p in pieces) for pieces in answers]
        columns["finish_reason"] = [pieces[-1].finish_reason for pieces in answers]
    return write_outputs(request, columns)


def write_outputs(
    request: PredictRequest, columns: dict[str, list]
) -> dict[str, list | dict]:
    """The body of an answer, in rows or columns as the request.

    Args:
        request: The request.
        columns: A value for each row, by output.
    """
    if request.instances is None:
        return {"outputs": columns}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def describe_signatures(lm) -> dict[str, Any]:
    """A model's signatures, as TensorFlow Serving's metadata have them.

    Args:
        lm: A `LanguageModel`.
    """
    signatures = {}
    for name in _find_signatures(lm):
        inputs = [*_find_inputs(lm, name), *_find_controls(name, lm.adapters)]
        task = lm.task if name == "serving_default" else name
        sides = {"inputs": inputs, "outputs": _OUTPUTS.get(task, _WRITTEN)}
        signatures[name] = {
            side: {tensor: _describe_tensor(tensor) for tensor in tensors}
            for side, tensors in sides.items()
        }
    return signatures


def _describe_tensor(name):
    dims = [{"size": "-1"}] * (2 if name in _MATRICES else 1)
    dtype = _DTYPE_NAMES[_DTYPES.get(name, "string")]
    return {"dtype": dtype, "tensor_shape": {"dim": dims}, "name": name}


def _find_signatures(lm):
    """The signatures that a model has."""
    others = set() if lm.chat_template else {"chat", "chat_with_controls"}
    others |= {"summarize", "translate"} - lm.tasks.keys()
    return [name for name in _SIGNATURES if name not in others]


def _find_inputs(lm, signature):
    """The inputs that a request must have."""
    if signature != "serving_default" or lm.task not in WHOLE:
        return _SIGNATURES[signature]
    # a single pair of languages is known, as `lm.answer` has it
    is_known = len(lm.tasks[lm.task].get("languages", [])) == 1
    return "prompt", *(() if is_known else WHOLE[lm.task][1:])


def _find_controls(signature, adapters=True):
    """The inputs that a request may have."""
    if signature not in _WITH_CONTROLS:
        return ()
    return (*ROW_CONTROLS, "adapter") if adapters else ROW_CONTROLS


def _choose(lm, adapter):
    """The model with a row's adapter; an empty name is none."""
    if adapter == "":
        return lm
    if adapter not in lm.adapters:
        known = ", ".join(lm.adapters) or "none"
        raise ApiError(
            400,
            f"'adapter' must be empty or one of the model's: {known}. Received: "
            f"{adapter!r:.50}.",
        )
    return lm.with_adapter(adapter)


def _read_controls(given):
    """A row's controls, without those that are the model's own."""
    controls = {"max_new_tokens": NEW_TOKENS, "seed": 0}
    for name, value in given.items():
        if value == OWN:
            continue
        if name == "top_k" and value == 0:  # no limit
            value = None
        try:
            controls[name] = check_control(name, value)
        except ValueError as error:
            raise ApiError(400, str(error), param=name) from error
    return controls


def _encode_chats(lm, conversations, controls):
    pairs = zip(conversations, controls, strict=True)
    try:
        return [
            encode_messages(lm, messages, given["max_new_tokens"])
            for messages, given in pairs
        ]
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def _read_messages(roles, contents):
    """A conversation, which ends at the first empty role."""
    if not (isinstance(roles, list) and isinstance(contents, list)):
        raise ApiError(400, "'roles' and 'contents' must be lists of lists.")
    messages = []
    for role, content in zip(roles, contents, strict=False):
        if role == "":
            break
        _check_text(role, "roles")
        _check_text(content, "contents")
        messages.append({"role": role, "content": content})
    return messages


def _check_text(text, name):
    if not isinstance(text, str):
        raise ApiError(400, f"{name!r} must be strings. Received: {text!r:.50}.")


def _unpad(ids, length):
    is_length = type(length) is int and isinstance(ids, list) and 0 < length <= len(ids)
    if not is_length or any(type(i) is not int for i in ids):
        raise ApiError(
            400,
            "'token_ids' must be lists of integers, and 'lengths' from 1 to their "
            "width.",
        )
    return ids[:length]
