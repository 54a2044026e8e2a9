"""Which process is meant, so that it can be told from a later one of its number, and from one on another machine."""

import os
import socket
import time
from pathlib import Path


def this_process() -> str:
    """Machine, number and start of this process, as it is noted where others look whether it is still there."""
    return as_noted(os.getpid())


def as_noted(pid: int) -> str:
    """The same of another process of this machine."""
    return f"{_machine()}/{pid}-{_start(str(pid))}"


def is_gone(pid: int, since: float) -> bool:
    """Whether a process of this machine, of which only its number is known, has ended; False where that is not certain.

    Args:
        pid: its number, which another may have by now.
        since: when it was seen last, in seconds since 1970.
    """
    if not Path("/proc/self/stat").exists():
        return False
    start = _start(str(pid))
    if not start:
        return True
    seconds_up = float(_content("/proc/uptime").split()[0])
    return time.time() - seconds_up + int(start) / os.sysconf("SC_CLK_TCK") > since + 1


def has_ended(process: str) -> bool | None:
    """Whether a process is gone; None where that cannot be seen from here: of another machine, or not on Linux.

    Args:
        process: as it noted itself.
    """
    machine, _, number = process.rpartition("/")
    pid, _, start = number.partition("-")
    if not start or machine != _machine():
        return None
    return start != _start(pid)


def _machine() -> str:
    """The machine, since it was started, and the space that process numbers belong to."""
    return "/".join([socket.gethostname(), _content("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")])


def _start(pid: str) -> str:
    """When a process of this machine was started, which tells it from a later one of the same number; "" if it ended."""
    # After the name, which may hold anything and ends with the last bracket: its state, and as the 20th field its start.
    fields = _content(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
