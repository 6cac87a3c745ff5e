"""JSON of the serving double's REST interface, by the rules of json_tensor.cc."""

import base64
import binascii
import json

import numpy as np

from tests.serving.capi import DTYPES, STRING, Signature, StatusError
from tests.serving.double_predict import DEFAULT_SIGNATURE, to_proto

_INTEGERS = ("int32", "uint8", "int16", "int8", "int64", "uint32", "uint64")


def _invalid(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)


def _show(value) -> str:
    return json.dumps(value, ensure_ascii=False)[:256]


def parse_request(body: bytes, find_signature, request) -> str:
    """Fill a PredictRequest from JSON.

    Args:
        body: The JSON.
        find_signature: Gives the `Signature` of a name.
        request: Gets its signature name and inputs.

    Returns:
        `"row"` or `"column"`, the format to answer in.

    Raises:
        StatusError: It isn't as it must be.
    """
    document = _parse(body)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _invalid(
            f"JSON Value: {_show(document)} not formatted correctly. 'signature_name' "
            "key must be a string value."
        )
    request.model_spec.signature_name = name
    signature = find_signature(name or DEFAULT_SIGNATURE)
    if "instances" in document and "inputs" in document:
        raise _invalid(
            f"JSON Value: {_show(document)} Not formatted correctly expecting only one "
            "of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _invalid(
                f"JSON Value: {_show(document)} Expecting 'instances' to be an "
                "list/array"
            )
        if not instances:
            raise _invalid(
                f"JSON Value: {_show(document)} No values in 'instances' array"
            )
        arrays, row_or_column = _from_rows(instances, signature), "row"
    elif "inputs" in document:
        arrays, row_or_column = _from_columns(document["inputs"], signature), "column"
    else:
        raise _invalid("Missing 'inputs' or 'instances' key")
    for name, array in arrays.items():
        proto = to_proto(array, signature.inputs[name].dtype)
        request.inputs[name].CopyFrom(proto)
    return row_or_column


def _parse(body: bytes) -> dict:
    if not body:
        raise _invalid("JSON Parse error: The document is empty")
    try:
        # NaN and Infinity are read, and what follows the document isn't, as there
        document, _ = json.JSONDecoder().raw_decode(body.decode().lstrip())
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _invalid(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from error
    except UnicodeDecodeError as error:
        raise _invalid("JSON Parse error: Invalid encoding in string.") from error
    except json.JSONDecodeError as error:
        raise _invalid(
            f"JSON Parse error: {error.msg} at offset: {error.pos}"
        ) from error
    if not isinstance(document, dict):
        raise _invalid(f"JSON Value: {_show(document)} Is not object")
    return document


def _is_base64(value) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["b64"]
        and isinstance(value["b64"], str)
    )


def _is_object(value) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _from_rows(instances: list, signature: Signature) -> dict[str, np.ndarray]:
    names = sorted(signature.inputs)
    if not isinstance(instances[0], dict) and len(names) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    objects = _is_object(instances[0])
    columns = {name: [] for name in names}
    for i, instance in enumerate(instances):
        if objects and not _is_object(instance):
            raise _invalid(f"Expecting object but got list at item {i} of input list")
        if not objects and _is_object(instance):
            raise _invalid(
                f"Expecting value/list but got object at item {i} of input list"
            )
        items = instance if objects else {names[0]: instance}
        for name, value in items.items():
            key = f" key: {name}" if objects else ""
            try:
                if name not in columns:
                    raise _invalid(f"JSON object: does not have named input: {name}")
                array = _to_array(value, signature.inputs[name].dtype)
                first = columns[name][0] if columns[name] else array
                if array.size != first.size:
                    raise _invalid(
                        f"Expecting tensor size: {first.size} but got: {array.size}"
                    )
                if array.shape != first.shape:
                    raise _invalid(
                        f"Expecting shape {list(first.shape)} but got: "
                        f"{list(array.shape)}"
                    )
            except StatusError as error:
                raise _invalid(
                    f"Failed to process element: {i}{key} of 'instances' list. Error: "
                    f"{error}"
                ) from error
            columns[name].append(array)
        if objects and sorted(items) != names:
            raise _invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: "
                f"{_show(instance)} keys must be equal to: {','.join(names)}"
            )
    return {name: np.stack(arrays) for name, arrays in columns.items()}


def _from_columns(inputs, signature: Signature) -> dict[str, np.ndarray]:
    if not _is_object(inputs):
        if len(signature.inputs) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        inputs = dict.fromkeys(signature.inputs, inputs)
    for name in signature.inputs:
        if name not in inputs:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
    # Names that the signature lacks are passed over, as there.
    return {
        name: _to_array(inputs[name], info.dtype)
        for name, info in signature.inputs.items()
    }


def _to_array(value, dtype: int) -> np.ndarray:
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    flat = []
    _flatten(value, 0, shape, dtype, flat)
    return np.array(flat, DTYPES[dtype]).reshape(shape)


def _flatten(value, level: int, shape: list[int], dtype: int, flat: list) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise _invalid(
                f"JSON Value: {_show(value)} found at incorrect level: {level + 1} in "
                f"the JSON DOM. Expected at level: {len(shape)}"
            )
        flat.append(_to_scalar(value, dtype))
        return
    if level >= len(shape):
        raise _invalid(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise _invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, level + 1, shape, dtype, flat)


def _to_scalar(value, dtype: int):
    kind = DTYPES[dtype]
    if isinstance(value, dict) and dtype == STRING:
        if not _is_base64(value):
            raise _invalid(
                f"JSON Value: {_show(value)} not formatted correctly for base64 data"
            )
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise _invalid("Unable to base64 decode") from error
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == STRING and isinstance(value, str):
        return value.encode()
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind.startswith("float") and is_number:
        return value
    if kind in _INTEGERS and is_number and isinstance(value, int):
        limits = np.iinfo("int32" if kind.endswith(("8", "16")) else kind)
        if limits.min <= value <= limits.max:
            return value
    names = {None: "Null", True: "True", False: "False"}
    types = {dict: "Object", list: "Array", str: "String"}
    shown = "Number" if is_number else types.get(type(value)) or names[value]
    wanted = {"object": "string", "float32": "float", "float64": "double"}
    raise _invalid(
        f"JSON Value: {_show(value)} Type: {shown} is not of expected type: "
        f"{wanted.get(kind, kind)}"
    )


def format_response(arrays: dict[str, np.ndarray], row_or_column: str) -> bytes:
    """The JSON of a response.

    Raises:
        StatusError: Rows are wanted and the outputs have other numbers of them.
    """
    columns = {}
    rows = None
    for name, array in arrays.items():
        if row_or_column == "row":
            if array.ndim == 0:
                raise _invalid(f"Tensor name: {name} has no shape information ")
            if rows not in (None, len(array)):
                raise _invalid(
                    f"Tensor name: {name} has inconsistent batch size: {len(array)} "
                    f"expecting: {rows}"
                )
            rows = len(array)
        columns[name] = _to_json(array, name.endswith("_bytes"))
    single = next(iter(columns.values())) if len(columns) == 1 else None
    if row_or_column == "column":
        document = {"outputs": columns if single is None else single}
    elif single is None:
        document = {
            "predictions": [
                {n: c[row] for n, c in columns.items()} for row in range(rows)
            ]
        }
    else:
        document = {"predictions": single}
    text = json.dumps(document, ensure_ascii=False, indent=4)
    return text.encode("utf-8", "surrogateescape")


def _to_json(array: np.ndarray, as_base64: bool):
    if array.dtype == object:

        def convert(value):
            if isinstance(value, list):
                return [convert(item) for item in value]
            if as_base64:
                return {"b64": base64.b64encode(value).decode()}
            return value.decode("utf-8", "surrogateescape")

        return convert(array.tolist())
    if array.dtype == np.float32:
        # the shortest decimal that reads back as the same float32
        return array.astype("U32").astype("float64").tolist()
    return array.tolist()
