"""Projects of somebody else's with pipelines and a component that compares what they make."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from semdedup_assets_tests.test_component import project


def write_project(
    folder: Path, pipelines: Sequence[dict[str, Any]], component: str, attributes: dict[str, Any]
) -> Path:
    """A project with the comparison's file before those of the pipelines, as the loading order is nobody's to know.

    Args:
        folder: of the project.
        pipelines: settings of each.
        component: type of the comparison.
        attributes: of the comparison.

    Returns:
        The comparison's file.
    """
    documents = [{"type": "semdedup_assets.SemDedupPipeline", "attributes": settings} for settings in pipelines]
    path = project(folder, yaml.safe_dump_all(documents))
    own = path.parent.parent / "a_comparison" / "defs.yaml"
    own.parent.mkdir()
    attributes = {"store": str(folder / "comparisons"), **attributes}
    own.write_text(yaml.safe_dump({"type": component, "attributes": attributes}, sort_keys=False))
    return own


def line_of(path: Path, problem: str) -> int:
    """Where the YAML has the setting that a problem begins with."""
    node = yaml.compose(path.read_text())
    for part in problem.partition(":")[0].split("."):
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(part)]
        else:
            key, node = next(pair for pair in node.value if pair[0].value == part)
            line = key.start_mark.line
    return int(line) + 1


def metadata_of(result: dg.ExecuteInProcessResult, node: str) -> dict[str, Any]:
    """What the only materialisation of an asset shows."""
    (event,) = result.asset_materializations_for_node(node)
    return {name: value.value for name, value in event.metadata.items()}


def comparison_job(definitions: dg.Definitions, key: dg.AssetKey) -> dg.JobDefinition:
    """A job that makes a comparison, and evaluates its check."""
    job = dg.define_asset_job("compare", selection=dg.AssetSelection.assets(key))
    return dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def("compare")


def check_job(definitions: dg.Definitions, key: dg.AssetKey) -> dg.JobDefinition:
    """A job that only evaluates the check of a comparison."""
    (check,) = definitions.resolve_asset_graph().get(key).check_keys
    only = dg.define_asset_job("only_check", selection=dg.AssetSelection.checks(check))
    return dg.Definitions.merge(definitions, dg.Definitions(jobs=[only])).resolve_job_def("only_check")
