"""Processes that train together, each with its own devices: on JAX, elsewhere one."""

import keras
import numpy as np

_SILENCE = 40  # seconds after which a process that gives no sign of life counts as dead

if keras.backend.backend() == "jax":
    import jax
    from jax.experimental import multihost_utils

    def join(address, num_processes, index):
        """Meet the others at the first one's address, before a device is touched.

        Keras's `initialize` leaves the silence at JAX's 100 s, and lets JAX give a
        process of Slurm one device of its host.
        """
        if not jax.distributed.is_initialized():
            jax.distributed.initialize(
                address,
                num_processes,
                index,
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=_SILENCE,
                shutdown_timeout_seconds=_SILENCE,
            )

    def place():
        """Which of the processes this is, and how many there are."""
        return jax.process_index(), jax.process_count()

    def tell_all(value):
        """What each process says, `(processes, ...)`, when all have said it."""
        return multihost_utils.process_allgather(np.asarray(value))

    def is_cut(value):
        """Whether no process has all of a variable's value."""
        return not (value.is_fully_addressable or value.is_fully_replicated)

    def to_numpy(value):
        """All of a variable's value, in each process."""
        if is_cut(value):
            return multihost_utils.process_allgather(value, tiled=True)
        return np.asarray(value)

else:

    def place():
        """Which of the processes this is, and how many there are."""
        return 0, 1

    def tell_all(value):
        """What each process says, `(processes, ...)`."""
        return np.asarray(value)[None]

    def is_cut(value):
        """Whether no process has all of a variable's value."""
        del value
        return False

    to_numpy = keras.ops.convert_to_numpy


def wait_for_all():
    """Go on when each process has come here."""
    tell_all(0)
