"""A Ray cluster of processes on this machine, whose workers and nodes can be killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DEADLINE_SECONDS = 120.0
# Ray's own: after half a minute. As long as a busy machine may keep a node from answering.
_NOTICES_A_DEAD_NODE_SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 5,
}


def wait_until(holds: Callable[[], Any], what: str) -> Any:
    """What a condition gives once it holds; looked at until a generous deadline."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers() -> dict[int, int]:
    """The processes of our workers on any node, each with its parent: the node's raylet."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            if command.startswith(b"ray::_Actor") and is_running(int(path.name)):
                found[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


class RayCluster:
    """A head and a second node of one CPU each.

    Attributes:
        address: of the head.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": _NOTICES_A_DEAD_NODE_SOON},
            shutdown_at_exit=True,
        )
        self.address: str = self._cluster.address
        self.add_node()

    def add_node(self) -> None:
        """Start the second node."""
        self._second = self._cluster.add_node(num_cpus=1)
        self._cluster.wait_for_nodes()

    @property
    def head_raylet(self) -> int:
        """Its process."""
        return self._raylet(self._cluster.head_node)

    @property
    def second_raylet(self) -> int:
        """Its process."""
        return self._raylet(self._second)

    @staticmethod
    def _raylet(node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    def kill_worker(self, raylet: int) -> int:
        """Kill a worker of a node; returns its process."""
        pid = wait_until(lambda: [pid for pid, parent in workers().items() if parent == raylet], "a worker")[0]
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def kill_second_node(self) -> None:
        """Kill the second node and all that runs on it."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def stop(self) -> None:
        """End all."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()
