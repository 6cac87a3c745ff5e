import contextlib
import itertools
import json
import resource

import numpy as np
import pytest
from keras import ops

from keras_gpt.data.embedded import embedded_corpus
from keras_gpt.tokenizers import BytePairTokenizer


@pytest.fixture(scope="session")
def documents():
    """Real English and code, some 150 kB."""
    return list(itertools.islice(embedded_corpus(), 60))


@pytest.fixture(scope="session")
def byte_pair(documents):
    return BytePairTokenizer.train(documents, 600, progress=False)


@pytest.fixture(scope="session")
def byte_pair_json(byte_pair):
    return json.loads(byte_pair.to_json())


@pytest.fixture(scope="session")
def logits_of():
    """A function: logits of a `GPT` as NumPy."""

    def compute(model, ids):
        return ops.convert_to_numpy(ops.stop_gradient(model(ids)))

    return compute


@pytest.fixture(scope="session")
def randomize():
    """A function that gives Keras weights values of which none can go unnoticed."""

    def assign(weights):
        random = np.random.default_rng(0)
        for weight in weights:
            values = random.normal(scale=0.1, size=weight.shape)
            is_scale = weight.path.endswith(("/gamma", "/scale"))
            weight.assign((values + is_scale).astype("float32"))

    return assign


@pytest.fixture
def full_disk():
    """A function that gives a block in which files can't grow beyond a size."""

    @contextlib.contextmanager
    def limit(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limit


@pytest.fixture
def token_ids():
    """Three sequences of 200 ids below 600."""
    return np.random.default_rng(1).integers(0, 600, (3, 200))


@pytest.fixture(scope="session")
def quiet_transformers():
    """No progress bars, and no advice about torchvision."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def make_reference(quiet_transformers):
    """A function that makes a model of Transformers with random weights."""
    import torch
    import transformers

    def make(family, settings):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **settings)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        # large enough for none to go unnoticed
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.data += torch.randn_like(weight) * 0.1
            else:
                weight.data *= 5
        return model

    return make
