"""Become another program that ends when the process that started it does, also where that is killed.

Run as a file, by `python -I -S launch.py <process that starts it> <program> <arguments>`: it loads nothing that it need not.
"""

import contextlib
import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def main() -> None:
    """Ask the system for the signal, then become the program."""
    parent, *command = sys.argv[1:]
    # A signal that launchers of several processes pass on. Elsewhere than on Linux a trainer outlives the run that was killed, and its folder stays locked until it ends.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
        # Whoever started this may ignore it, and a program inherits that.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if os.getppid() != int(parent):
            sys.exit(f"the process {parent} that started this one is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: cannot be run ({error.strerror})")


if __name__ == "__main__":
    main()
