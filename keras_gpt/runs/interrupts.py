"""Ctrl-C and SIGTERM as a note that is read where it can be obeyed."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Notice(threading.Event):
    """Whether a signal came.

    Attributes:
        signal: Its number, or `None`.
    """

    signal: int | None = None

    def obey(self, number: int) -> None:
        """Do what a signal asks for, which this process was sent or another.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            SystemExit: It was SIGTERM: the program ends, and without an error.
        """
        self.signal = number
        self.set()
        raise SystemExit(0) if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def noticed_interrupts(*signals: int) -> Iterator[Notice]:
    """Note Ctrl-C instead of raising it anywhere, such as amid a compilation.

    A `KeyboardInterrupt` can get lost: Keras passes over every exception while it
    waits for the losses of a batch, and JAX over some while it compiles. A second
    signal is obeyed at once, for who can't wait.

    Args:
        *signals: Others to note, such as `signal.SIGTERM`.

    Yields:
        The note.
    """
    notice = Notice()

    def note(number, frame):
        del frame
        notice.signal = number
        if notice.is_set():
            notice.obey(number)
        notice.set()

    if threading.current_thread() is not threading.main_thread():
        yield notice  # signals come to the main thread only
        return
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, *signals)}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
