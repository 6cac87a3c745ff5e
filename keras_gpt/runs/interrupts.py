"""Ctrl-C as a note that is read where it can be obeyed."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[threading.Event]:
    """Note Ctrl-C instead of raising it anywhere, such as amid a compilation.

    A `KeyboardInterrupt` can get lost: Keras passes over every exception while it
    waits for the losses of a batch, and JAX over some while it compiles. A second
    Ctrl-C is raised, for who can't wait.

    Yields:
        The note.
    """
    noticed = threading.Event()

    def notice(number, frame):
        del number, frame
        if noticed.is_set():
            raise KeyboardInterrupt
        noticed.set()

    if threading.current_thread() is not threading.main_thread():
        yield noticed  # signals come to the main thread only
        return
    before = signal.signal(signal.SIGINT, notice)
    try:
        yield noticed
    finally:
        signal.signal(signal.SIGINT, before)


class EndOnInterrupt(keras.callbacks.Callback):
    """Raise `KeyboardInterrupt` after the batch during which Ctrl-C was noted.

    Args:
        noticed: What `noticed_interrupts` gave.
    """

    def __init__(self, noticed: threading.Event):
        super().__init__()
        self._noticed = noticed

    def on_train_batch_end(self, batch, logs=None):
        """Look after each batch of training."""
        if self._noticed.is_set():
            raise KeyboardInterrupt

    def on_test_batch_end(self, batch, logs=None):
        """Look after each batch of validation."""
        self.on_train_batch_end(batch)
