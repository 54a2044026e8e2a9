"""How the threads of OpenMP wait, which PyTorch and faiss compute with."""

import os

SLEEPING = {"OMP_WAIT_POLICY": "passive"}
"""The environment of a process whose threads sleep until they have something to do."""

_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def waiting_environment() -> dict[str, str]:
    """How the threads of a process that is started wait: as those of this one do by its user's choice, else asleep."""
    return {name: os.environ[name] for name in _SPINNING if name in os.environ} or SLEEPING


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait for one another, in this process and those that it starts.

    By default they spin: two processes on the same cores then take several times as long, and one alone gains nothing
    (`benchmarks/shared_cores.py`). OpenMP reads this as it is loaded: call it before PyTorch is imported. A setting
    that is there already stays.
    """
    if not any(name in os.environ for name in _SPINNING):
        os.environ.update(SLEEPING)
