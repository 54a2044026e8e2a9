"""A process is said to have ended only where that is seen."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semdedup_assets.execution.processes import has_ended, is_gone, this_process, was_before_this_boot

_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))),
    reason="only root mounts another /proc",
)
_ASK = "import sys; from semdedup_assets.execution.processes import has_ended; print(has_ended(sys.argv[1]))"
_ASK_FOR_NUMBER = (
    "import sys; from semdedup_assets.execution.processes import is_gone; print(is_gone(int(sys.argv[1])))"
)
_ASK_FOR_ITSELF = "from semdedup_assets.execution.processes import *; print(has_ended(this_process()))"


def test_a_process_is_there_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        noted = this_process().replace(f"/{os.getpid()}-", f"/{process.pid}-")
        assert has_ended(this_process()) is False
        assert has_ended(noted) is True, "started at another time: a process that had the number before"
        assert not is_gone(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(process.pid), "a zombie"
    assert is_gone(process.pid)
    assert has_ended(noted) is True


@pytest.mark.parametrize("number", ["", "-", "x-1", "-1-1", "99999999999999999999-1", "1"])
def test_what_is_no_number_of_a_process_is_not_said_to_have_ended(number: str) -> None:
    assert has_ended(f"{this_process().rpartition('/')[0]}/{number}") is None


@_ROOT
@pytest.mark.parametrize("hidepid", [0, 1, 2])
def test_a_process_that_is_hidden_from_a_user_has_not_ended(hidepid: int) -> None:
    def ask(question: str, about: str) -> str:
        command = f'mount -t proc -o hidepid={hidepid} proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
        arguments = ["unshare", "-m", "sh", "-c", command, "-", sys.executable, "-c", question, about]
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    assert ask(_ASK, this_process()) == ("None" if hidepid else "False")
    assert ask(_ASK_FOR_NUMBER, str(os.getpid())) == "False"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert ask(_ASK_FOR_NUMBER, str(process.pid)) == "True"
    assert ask(_ASK, this_process().replace(f"/{os.getpid()}-", f"/{process.pid}-")) == "True"


@_ROOT
def test_with_the_proc_of_other_numbers_a_process_does_not_take_itself_for_gone() -> None:
    arguments = ["unshare", "--fork", "--pid", sys.executable, "-c", _ASK_FOR_ITSELF]
    asked = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    assert asked.stdout.strip() == "None"


def test_of_an_earlier_boot_is_what_was_seen_before_this_one_on_a_machine_of_this_name() -> None:
    space = Path("/proc/self/ns/pid").readlink()
    here, elsewhere = (f"{name}/another-boot/{space}/{os.getpid()}-1" for name in (socket.gethostname(), "gpu-7"))
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert was_before_this_boot(here, booted - 1)
    assert not was_before_this_boot(here, booted + 1), "another machine of the same name"
    assert not was_before_this_boot(elsewhere, booted - 1)
    assert not was_before_this_boot(here.replace("another-boot", ""), booted - 1), "no boot was known"
    assert not was_before_this_boot(this_process(), booted - 1)
