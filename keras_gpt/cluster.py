"""Ray, which spreads work over processes and machines: an optional dependency."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from keras_gpt.installed import require


@contextmanager
def connected(address: str | None = None, num_cpus: int | None = None) -> Iterator[Any]:
    """Give Ray, connected to a cluster for as long as the block lasts.

    A connection that the caller already made with `ray.init` is used and left open.
    What fails in a task is raised from the block as it was raised there.

    Args:
        address: Of a running cluster, as `ray.init` takes it, such as `"auto"`.
            Defaults to the environment's `RAY_ADDRESS`, else `"local"`: one that is
            started on this machine and ends with the block.
        num_cpus: What a cluster that is started offers. Defaults to all cores.

    Raises:
        ImportError: Ray is missing.
        ConnectionError: There is no such cluster.
    """
    require("ray", "`engine='ray'`", "ray")
    import ray

    is_open = ray.is_initialized()
    try:
        with nullcontext() if is_open else _started(ray, address, num_cpus):
            yield ray
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@contextmanager
def _started(ray, address, num_cpus):
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    started = {"num_cpus": num_cpus, "include_dashboard": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)  # which Ray replaces
    try:
        try:
            ray.init(
                address,
                **(started if address == "local" else {}),
                configure_logging=False,
                log_to_driver=False,
            )
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Does it run? Where it asks for a token, set "
                "RAY_AUTH_MODE=token here too."
            ) from error
        yield
    finally:
        ray.shutdown()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
