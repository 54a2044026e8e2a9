"""Ctrl-C ends a command within a moment, whatever it is at."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from semdedup_assets.command_line.errors import INTERRUPTED

# For what is written to be discarded; a matrix product, or threads that a pool waits for, may take minutes.
_GRACE_SECONDS = 1.0


@contextmanager
def ending_at_once(line: Callable[[], str], *, left: Callable[[], str] = str) -> Iterator[None]:
    """End the process within a second where Ctrl-C is pressed in a block, with a line and the status 130.

    Python hears of a signal between two of its own instructions: what computes for minutes in a library would go on.
    So a thread listens too.

    Args:
        line: gives what is said.
        left: gives what is said where there was no time to clean up, if anything.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    said = threading.Event()
    thread = threading.Thread(target=_end, args=(ours, line, left, said), name="interrupts", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        said.wait(_GRACE_SECONDS)
        raise
    finally:
        signal.set_wakeup_fd(before)
        # Ends the thread, unless it is at ending the process.
        theirs.close()
        if not said.is_set():
            thread.join()
            ours.close()


def _end(signals: socket.socket, line: Callable[[], str], left: Callable[[], str], said: threading.Event) -> None:
    while received := signals.recv(1):
        if received[0] == signal.SIGINT:
            os.write(2, f"\n{line()}\n".encode())
            said.set()
            time.sleep(_GRACE_SECONDS)
            if remaining := left():
                os.write(2, f"{remaining}\n".encode())
            os._exit(INTERRUPTED)
