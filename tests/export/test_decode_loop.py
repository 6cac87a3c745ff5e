import numpy as np
import pytest
import tensorflow as tf

from keras_gpt.export.decode_loop import draw_uniforms
from keras_gpt.generation.sampling import draw_uniforms as drawn_by_numpy


@pytest.mark.parametrize("is_compiled", [False, True])
def test_uniforms_are_those_of_numpy(is_compiled):
    seeds = [0, 1, 2, 12345, 2**16, 2**31 - 1]
    draw = tf.function(draw_uniforms, jit_compile=is_compiled)
    drawn = draw(tf.constant(seeds, tf.int32), 1000)
    np.testing.assert_array_equal(drawn, drawn_by_numpy(seeds, 1000))
