"""The code location: every pipeline declared under `defs/`, and how its runs are executed."""

from pathlib import Path

try:
    import dagster as dg
except ModuleNotFoundError as error:
    from semdedup_assets.extras import without_dagster

    raise without_dagster(error) from error

from semdedup_assets.defs_folder import load_from_defs_folder


@dg.definitions
def defs() -> dg.Definitions:
    """All pipelines of `defs/`, each run of them in one process."""
    pipelines = load_from_defs_folder(path_within_project=Path(__file__).parent)
    # A step in a process of its own would load the model, and start CUDA, again; within a stage,
    # PyTorch and faiss use all cores already, so steps side by side would only compete for them.
    return dg.Definitions.merge(pipelines, dg.Definitions(executor=dg.in_process_executor))
