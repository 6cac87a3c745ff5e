"""Fixtures: SavedModels for protocol tests, and servers of them."""

import shutil

import pytest

from tests.tf_serving.server import DESCRIPTION, serve


def pytest_report_header():
    return f"serving tests run against {DESCRIPTION}"


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """A folder with `docs/1`, `docs/2`, `first/1` and `compiled/1`, of `toy.py`."""
    from tests.tf_serving import toy

    folder = tmp_path_factory.mktemp("toys")
    toy.save_toy(folder / "docs" / "1")
    toy.save_toy(folder / "docs" / "2", version=2)
    toy.save_compiled(folder / "compiled" / "1")
    shutil.copytree(folder / "docs" / "1", folder / "first" / "1")
    return folder


@pytest.fixture(scope="session")
def server(toys):
    """A server of the toy's first version, as `docs`."""
    # Requests that a client gave up don't keep the machine busy for long.
    with serve(toys / "first", "--rest_api_timeout_in_ms=5000") as running:
        yield running
