"""Checks that an exported graph does when it runs."""

import tensorflow as tf


def check(
    condition: tf.Tensor,
    values: tf.Tensor,
    message: str,
    received: tf.Tensor | None = None,
) -> tf.Tensor:
    """Fail unless all of a condition holds; what uses the result waits for that.

    Args:
        condition: Booleans.
        values: A tensor.
        message: What is wrong, up to "Received".
        received: What to show. Defaults to the values.

    Returns:
        The values.
    """
    received = values if received is None else received
    holds = tf.debugging.Assert(
        tf.reduce_all(condition), [f"{message}. Received:", received]
    )
    with tf.control_dependencies([holds]):
        return tf.identity(values)
