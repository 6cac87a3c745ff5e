"""Answering a file of prompts: a job that goes on where it was stopped."""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import keras

from keras_gpt.cluster import connected
from keras_gpt.config import check_choice
from keras_gpt.data.batches import check_at_least
from keras_gpt.data.sources import is_remote
from keras_gpt.files import atomic_path


def answer_records(
    answer: Callable[[list[int]], list[Any]],
    texts: Sequence[str],
    output: str | Path,
    *,
    records: Sequence[dict[str, Any]],
    answer_field: str = "answer",
    about: dict[str, Any] | None = None,
    batch_size: int = 8,
    engine: str = "process",
    num_workers: int | None = None,
    ray_address: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Answer each record once, and write the records with their answers.

    What is answered is noted beside `output`, in a hidden file, from which a job that
    was stopped goes on with the rest. In the end `output` is there as a whole, in the
    order of the records.

    Args:
        answer: From places in `texts` to the answers, as JSON can hold them; those of
            like length are asked for together. For Ray it is pickled, so let it load
            its model when it is first called.
        texts: One of each record.
        output: The file of JSON Lines.
        records: What is written, each with its answer.
        answer_field: Where the answer shall be.
        about: What else the answers depend on, as JSON can hold it: a job goes on only
            if it is the same.
        batch_size: Records at once.
        engine: What answers: `"process"`, this one; or `"ray"`, workers of a Ray
            cluster, each with its own copy of `answer`.
        num_workers: How many workers of Ray share its CPUs. Defaults to one for each
            GPU, or else for each machine.
        ray_address: Of a running cluster, such as `"auto"`. Defaults to the
            environment's `RAY_ADDRESS`, else one is started on this machine.
        on_progress: Called with the number of records that are done.

    Raises:
        FileExistsError: `output` is there.
        ImportError: Ray is missing.
        ValueError: Other records, or other answers, were begun there, or `output` is
            no local file.
    """
    check_choice("engine", engine, ("process", "ray"))
    check_at_least(1, num_workers=num_workers)
    if is_remote(output):
        raise ValueError(
            "`output` must be a file of this machine, since what is answered is noted "
            f"beside it as it comes. Received: output={output!r}. Copy it in the end."
        )
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
        starts = range(0, len(left), batch_size)
        batches = [left[start : start + batch_size] for start in starts]
        if engine == "ray":
            answered = _answer_on_ray(answer, batches, num_workers, ray_address)
        else:
            answered = (_answer_batch(answer, places) for places in batches)
        with closing(answered):
            for answers in answered:
                found |= answers
                for pair in answers.items():
                    print(json.dumps(pair), file=file)
                file.flush()
                if on_progress is not None:
                    on_progress(len(answers))
    with (
        atomic_path(output) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for i, record in enumerate(records):
            line = {**record, answer_field: found[i]}
            print(json.dumps(line, ensure_ascii=False), file=file)
    part.unlink()


def _answer_batch(answer, places) -> dict[int, Any]:
    try:
        return dict(zip(places, answer(places), strict=True))
    except ValueError as error:
        raise ValueError(f"Of the records {places}: {error}") from None


class _Worker:
    """What a worker of Ray is."""

    def __init__(self, answer):
        self._answer = answer

    def work(self, places):
        return _answer_batch(self._answer, places)


def _answer_on_ray(answer, batches, num_workers, address) -> Iterator[dict[int, Any]]:
    """Answer batches by workers, each as soon as it can."""
    if not batches:
        return
    with connected(address) as ray:
        from ray.util import ActorPool

        options = _share(ray.nodes(), num_workers)
        backend = {"KERAS_BACKEND": keras.config.backend()}
        options["runtime_env"] = {"env_vars": backend}
        num_workers = min(options.pop("num_workers"), len(batches))
        # a worker that dies is begun anew, and asked again
        worker = ray.remote(max_restarts=2, max_task_retries=2, **options)(_Worker)
        shared = ray.put(answer)
        pool = ActorPool([worker.remote(shared) for _ in range(num_workers)])
        yield from pool.map_unordered(
            lambda worker, places: worker.work.remote(places), batches
        )


def _share(nodes, num_workers):
    """How many workers there is room for, and what each takes."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in alive)
    if gpus:
        return {"num_workers": min(num_workers or gpus, gpus), "num_gpus": 1}
    cores = [cores for node in alive if (cores := int(node.get("CPU", 0)))]
    wanted = num_workers or len(cores)
    share = max(1, sum(cores) // wanted)
    while share > 1 and sum(n // share for n in cores) < wanted:
        share -= 1  # a worker is on one machine
    return {"num_workers": min(wanted, sum(cores)), "num_cpus": share}


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
