import numpy as np
import pytest


@pytest.fixture
def randomize():
    """A function that fills a layer's weights, so that none is 0, 1 or tiny."""

    def fill(layer, scale=0.5):
        random = np.random.default_rng(1)
        for variable in layer.trainable_variables:
            values = random.normal(scale=scale, size=variable.shape)
            variable.assign(values.astype("float32"))

    return fill
