"""Which runs of a code location are of this project's assets, checks and jobs alone: each step of theirs notes its process."""

from collections.abc import Callable

import dagster as dg

from semdedup_assets.assets.builder import STEP_TAG


def own_runs(repository: dg.RepositoryDefinition | None) -> Callable[[dg.DagsterRun], bool]:
    """What tells whether each step of a run is ours, of whichever pipelines and comparisons.

    Args:
        repository: all definitions of the code location, others' among them; None where they are not known.
    """
    if repository is None:
        return lambda _: False
    graph = repository.asset_graph
    ours = {key for key in graph.get_all_asset_keys() if STEP_TAG in graph.get(key).tags}
    # Whoever has a project of their own may check our assets too.
    others = {key for key, check in repository.asset_checks_defs_by_key.items() if STEP_TAG not in check.node_def.tags}

    def is_own(run: dg.DagsterRun) -> bool:
        checked = run.asset_check_selection or set()
        asked = (run.asset_selection or set()) | {key.asset_key for key in checked}
        if asked:
            return asked <= ours and not checked & others
        return repository.has_job(run.job_name) and _is_own_job(repository.get_job(run.job_name), ours)

    return is_own


def _is_own_job(job: dg.JobDefinition, ours: set[dg.AssetKey]) -> bool:
    """Whether all that a job makes is among some assets, or, where it makes none, its ops have our tag."""
    made = job.asset_layer.asset_graph.executable_asset_keys
    return made <= ours if made else all(STEP_TAG in node.tags for node in job.all_node_defs)
