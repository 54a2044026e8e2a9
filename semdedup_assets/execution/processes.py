"""Which process is meant, so that it can be told from a later one of its number, and from one on another machine."""

import math
import os
import socket
import time
from pathlib import Path


def this_process() -> str:
    """Machine, number and start of this process, as it is noted where others look whether it is still there."""
    return as_noted(os.getpid())


def as_noted(pid: int) -> str:
    """The same of another process of this machine."""
    return f"{_machine()}/{pid}-{_start(str(pid)) or ''}"


def is_gone(pid: int) -> bool:
    """Whether this machine has no process of a number; False where that is not certain, or another has the number by now.

    When a process was started is not compared with when it was seen: the clock of a machine that was paused jumps, and
    a container's may begin later than its processes.

    Args:
        pid: the number.
    """
    return _start(str(pid)) == ""


def has_ended(process: str) -> bool | None:
    """Whether a process is gone; None where that cannot be seen from here.

    It cannot if the process is of another machine, is hidden from this user, or where there is no `/proc`.

    Args:
        process: as it noted itself.
    """
    machine, _, number = process.rpartition("/")
    pid, _, noted = number.partition("-")
    if not noted or machine != _machine():
        return None
    start = _start(pid)
    return None if start is None else start != noted


def was_before_this_boot(process: str, seen: float) -> bool:
    """Whether a process was of this machine and, as this was started anew since, is gone.

    Machines may share a name, or be copies of one: one that was seen after this one's start is not of this one.

    Args:
        process: as it noted itself.
        seen: when there was a sign of it last, in seconds since 1970.
    """
    (host, boot), (this_host, this_boot) = (_host_and_boot(each) for each in (process.rpartition("/")[0], _machine()))
    return host == this_host and "" not in (boot, this_boot) and boot != this_boot and seen < _started_at()


def _host_and_boot(machine: str) -> tuple[str, str]:
    host, _, rest = machine.partition("/")
    return host, rest.partition("/")[0]


def _started_at() -> float:
    """When this machine was started, in seconds since 1970, by today's clock; never where that is not known."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return -math.inf
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _machine() -> str:
    """The machine, since it was started, and the space that process numbers belong to."""
    return "/".join([socket.gethostname(), _content("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")])


def _start(pid: str) -> str | None:
    """When a process of this machine was started, which tells it from a later one of the same number.

    Returns:
        "" if it has ended; None where it cannot be looked at.
    """
    # `/proc` may be that of another space of process numbers.
    if not pid.isdecimal() or _link("/proc/self") != str(os.getpid()):
        return None
    # After the name, which may hold anything and ends with the last bracket: its state, and as the 20th field its start.
    fields = _content(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) > 19:
        return fields[19] if fields[0] not in "ZX" else ""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return ""
    except (PermissionError, OverflowError):
        pass
    # It is there: `/proc` hides processes of other users where it is mounted so.
    return None


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
