"""Fixtures: a tiny model, and a server of it in this process."""

import contextlib
import socket
import threading
import time
from types import SimpleNamespace

import openai
import pytest
import uvicorn

from keras_gpt.server import Settings
from keras_gpt.server.app import make_app
from tests.tiny import make_lm


@contextlib.contextmanager
def serve(lm, **settings):
    """Serve a model from a thread; gives the app and its address."""
    settings = Settings(name="tiny", **settings)
    app = make_app(lm, settings)
    config = uvicorn.Config(app, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started and app.state.service.scheduler.is_ready)
            yield SimpleNamespace(app=app, address=f"http://127.0.0.1:{port}")
        finally:
            server.should_exit = True
            thread.join()


def make_client(server):
    """The `openai` package's client of a server."""
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def wait_until(is_so):
    """Wait for what another thread does."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "It didn't come."
        time.sleep(0.005)


@pytest.fixture(scope="session")
def lm():
    """A language model of its own, which the test may use beside the server."""
    return make_lm()


@pytest.fixture(scope="session")
def server():
    """A server of the same model."""
    with serve(make_lm(), num_slots=4, max_waiting=4, max_tokens=1000) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    """The `openai` package's client of it."""
    with make_client(server) as client:
        yield client
