"""`serve`: a server of SavedModels for tests, the serving double or TensorFlow Serving.

Without more it is the double (`double.py`), which is not TensorFlow Serving. With
`KERAS_GPT_TF_SERVING_IMAGE=tensorflow/serving:2.19.1`, say, Docker runs that image.
"""

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

IMAGE = os.environ.get("KERAS_GPT_TF_SERVING_IMAGE", "")
DESCRIPTION = (
    f"TensorFlow Serving, the Docker image {IMAGE}"
    if IMAGE
    else "the serving double of the tests, not TensorFlow Serving"
)
_ROOT = Path(__file__).parents[2]
_SECONDS_TO_START = 120


@dataclass
class Server:
    """A server that runs.

    Attributes:
        rest: Its address for REST, `"http://host:port"`.
        grpc: Its address for gRPC, `"host:port"`.
        log: The lines that it has written.
    """

    rest: str
    grpc: str
    log: list[str] = field(default_factory=list)


class StartError(RuntimeError):
    """The server ended before it served. The message is what it wrote."""


@contextlib.contextmanager
def serve(
    model_base_path: Path | None,
    *flags: str,
    model_name: str = "docs",
    port: int = 0,
    rest_api_port: int = 0,
    folders: Sequence[Path] = (),
) -> Iterator[Server]:
    """Serve the versions in a folder until the block ends.

    Args:
        model_base_path: The folder, or `None` when flags name a `--model_config_file`.
        *flags: As of tensorflow_model_server.
        model_name: The name that it is served under.
        port: For gRPC. 0 picks a free one.
        rest_api_port: For REST. 0 picks a free one.
        folders: What a container must see besides the files that the flags name.

    Raises:
        StartError: It ends at once.
    """
    if model_base_path is not None:
        folder = Path(model_base_path).resolve()
        flags = (f"--model_name={model_name}", f"--model_base_path={folder}", *flags)
    if IMAGE:
        start = _start_docker(flags, port, rest_api_port, folders)
    else:
        start = _start_double(flags, port, rest_api_port)
    with start as server:
        yield server


@contextlib.contextmanager
def _start_double(flags, port: int, rest_api_port: int) -> Iterator[Server]:
    command = [
        sys.executable,
        "-m",
        "tests.tf_serving.double",
        f"--port={port}",
        f"--rest_api_port={rest_api_port}",
        *flags,
    ]
    # It dies when this process does, and so its end of the pipe. It takes as many
    # threads as the server would, whatever the tests' own process has.
    environment = {
        name: value for name, value in os.environ.items() if "_NUM_INTER" not in name
    } | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with _running(command, cwd=_ROOT, env=environment) as (process, lines, log):
        found = {}
        for line in _lines_until(lines, time.monotonic() + _SECONDS_TO_START):
            name, _, address = line.partition(" at ")
            if name in ("gRPC", "REST"):
                found[name] = address
            if len(found) == 2:
                break
        else:
            process.wait(10)
            raise StartError("\n".join(log))
        yield Server(found["REST"], found["gRPC"], log)


@contextlib.contextmanager
def _start_docker(
    flags, port: int, rest_api_port: int, folders: Sequence[Path]
) -> Iterator[Server]:
    """Run the real server, which sees folders and files under their own paths."""
    name = f"keras-gpt-test-{uuid.uuid4().hex[:12]}"
    mounts = {Path(folder).resolve() for folder in folders}
    for flag in flags:
        path = Path(flag.partition("=")[2])
        if path.is_absolute() and path.exists():
            mounts.add(path if path.is_dir() else path.parent)
    command = [_docker(), "run", "--rm", "--name", name]
    for published, inside in ((port, 8500), (rest_api_port, 8501)):
        command += ["--publish", f"127.0.0.1:{published or ''}:{inside}"]
    for mount in sorted(mounts):
        command += ["--volume", f"{mount}:{mount}:ro"]
    command += ["--entrypoint", "tensorflow_model_server", IMAGE]
    command += ["--port=8500", "--rest_api_port=8501", *flags]
    try:
        with _running(command) as (process, _, log):
            rest = grpc = None
            deadline = time.monotonic() + _SECONDS_TO_START
            while not (rest and _answers(rest)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StartError("\n".join(log))
                time.sleep(0.2)
                rest, grpc = _published(name, 8501), _published(name, 8500)
            yield Server(f"http://{rest}", grpc, log)
    finally:
        subprocess.run([_docker(), "rm", "--force", name], capture_output=True)


def _docker() -> str:
    path = shutil.which("docker")
    if path is None:
        raise StartError("KERAS_GPT_TF_SERVING_IMAGE is set and there is no docker.")
    return path


def _published(name: str, port: int) -> str | None:
    """The address on this machine of a container's port."""
    command = [_docker(), "port", name, str(port)]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.split("\n")[0].strip() or None


def _answers(address: str) -> bool:
    """Whether the server listens: any answer will do, as it opens ports once ready."""
    try:
        with urllib.request.urlopen(f"http://{address}/v1/models/none", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


@contextlib.contextmanager
def _running(command: list[str], **options):
    """A process, a queue of the lines that it writes and a list of them."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **options,
    )
    lines, log = queue.Queue(), []

    def read():
        for line in process.stdout:
            log.append(line.rstrip("\n"))
            lines.put(log[-1])
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, lines, log
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        process.stdin.close()
        process.stdout.close()


def _lines_until(lines: queue.Queue, deadline: float) -> Iterator[str]:
    """Lines as they come, until the process or the time ends."""
    while True:
        try:
            line = lines.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            return
        if line is None:
            return
        yield line
