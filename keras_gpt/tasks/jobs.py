"""Answering a file of prompts: a job that goes on where it was stopped."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_gpt.files import atomic_path


def answer_records(
    answer: Callable[[list[int]], list[str]],
    texts: Sequence[str],
    output: str | Path,
    *,
    records: Sequence[dict[str, Any]],
    answer_field: str = "answer",
    about: dict[str, Any] | None = None,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Answer each record once, and write the records with their answers.

    What is answered is noted beside `output`, in a hidden file, from which a job that
    was stopped goes on with the rest. In the end `output` is there as a whole, in the
    order of the records.

    Args:
        answer: From places in `texts` to the answers; those of like length are asked
            for together.
        texts: One of each record.
        output: The file of JSON Lines.
        records: What is written, each with its answer.
        answer_field: Where the answer shall be.
        about: What else the answers depend on, as JSON can hold it: a job goes on only
            if it is the same.
        batch_size: Records at once.
        on_progress: Called with the number of records that are done.

    Raises:
        FileExistsError: `output` is there.
        ValueError: Other records, or other answers, were begun there.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(
            f"{output} is there already. Choose another name, or remove it first."
        )
    part = output.with_name(f".{output.name}.part")
    number = zlib.crc32("\0".join(texts).encode("utf-8", "surrogatepass"))
    header = {"records": len(texts), "checksum": number, "about": about or {}}
    found = _read(part, header)
    if on_progress is not None and found:
        on_progress(len(found))
    # the longest first: what is too long, or too much for the memory, shows at once
    left = sorted(set(range(len(texts))) - set(found), key=lambda i: -len(texts[i]))
    output.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a", encoding="utf-8") as file:
        if not found:
            file.truncate(0)
            print(json.dumps(header), file=file, flush=True)
        for start in range(0, len(left), batch_size):
            places = left[start : start + batch_size]
            try:
                answers = dict(zip(places, answer(places), strict=True))
            except ValueError as error:
                raise ValueError(f"Of the records {places}: {error}") from None
            found |= answers
            for pair in answers.items():
                print(json.dumps(pair), file=file)
            file.flush()
            if on_progress is not None:
                on_progress(len(places))
    with (
        atomic_path(output) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for i, record in enumerate(records):
            line = {**record, answer_field: found[i]}
            print(json.dumps(line, ensure_ascii=False), file=file)
    part.unlink()


def _read(part, header):
    """Answers by place that a stopped job noted; what it was in the midst of is cut."""
    if not part.is_file():
        return {}
    noted = part.read_bytes()
    whole = noted[: noted.rfind(b"\n") + 1]
    first, *lines = whole.splitlines() or [None]
    if first is None:
        return {}
    if json.loads(first) != json.loads(json.dumps(header)):
        raise ValueError(
            f"{part} is of a job with other records or options. Give those again to go "
            "on with it, remove it to begin anew, or choose another output."
        )
    if whole != noted:
        with part.open("r+b") as file:
            file.truncate(len(whole))
    return dict(json.loads(line) for line in lines)
