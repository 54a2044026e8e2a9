"""Makes Dagster's real daemon look more often: on `PYTHONPATH`, Python imports a module of this name as it starts.

Its backfills go on every 30 seconds, once for each layer of a graph, its queue and its sensors every 5; no setting of
Dagster's changes all of these.
"""

import sys

_SECONDS = 2
# Who looks in the middle of a run asks for what can be made already, and for the rest in a run more.
_BACKFILL_SECONDS = 10

if "dagster._daemon" in sys.orig_argv:
    from dagster._daemon import controller, sensor
    from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = _BACKFILL_SECONDS  # Read by the loop of the backfills.
    sensor.MIN_INTERVAL_LOOP_TIME = _SECONDS
    # Whatever the instance's configuration says.
    QueuedRunCoordinatorDaemon.interval_seconds = property(lambda _: _SECONDS, lambda *_: None)
