import numpy as np
import pytest
import tensorflow as tf

from keras_gpt.export.uniforms import draw_uniforms
from keras_gpt.generation.sampling import draw_uniforms as drawn_by_numpy

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 100])
def test_uniforms_are_those_of_numpy(num_tokens):
    seeds = [0, 1, 2, 12345, 2**16, 2**31 - 1]
    drawn = draw_uniforms(tf.constant(seeds, tf.int32), num_tokens)
    np.testing.assert_array_equal(drawn, drawn_by_numpy(seeds, num_tokens))
