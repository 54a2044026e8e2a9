"""A pipeline or comparison that cannot be loaded, as an asset that says why: the others are there all the same."""

from dataclasses import dataclass

import dagster as dg

from semdedup_assets.assets.builder import dagster_name
from semdedup_assets.assets.metadata import markdown_text

_EXPLAINED = (
    "Mend the settings, or remove the file, and reload the code location (*Deployment*, *Reload*): the assets, jobs, sensors "
    "and schedules come back with all that was made. Until then none of them is there, and nothing of it is refreshed. What "
    "else is loaded is not affected. `dg check defs` prints the same, and fails."
)


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """What is known of a component that cannot be loaded.

    Attributes:
        name: of the dataset or the comparison; of the folder where the settings do not say it.
        problems: what is wrong, each with file and line.
        model: second part of a pipeline's name, where the settings say it.
        traceback: of an exception, where it was none that lists problems.
        is_fault: whether the exception is none that settings should bring about.
    """

    name: str
    problems: tuple[str, ...]
    model: str | None = None
    traceback: str = ""
    is_fault: bool = False


def not_loaded_definitions(broken: NotLoaded, name: str) -> dg.Definitions:
    """The asset `<name>/not_loaded`, which fails with the problems.

    Its group says that too, for groups are what the graph of all assets shows.

    Args:
        broken: what cannot be loaded.
        name: first part of the key, which no other has.
    """
    key, message = dg.AssetKey([name, "not_loaded"]), "\n".join(broken.problems)
    listed = "\n".join(f"- {markdown_text(problem)}" for problem in broken.problems)
    metadata: dict[str, dg.MarkdownMetadataValue] = {"problems": dg.MetadataValue.md(listed)}
    if broken.traceback:
        metadata["traceback"] = dg.MetadataValue.md(f"```text\n{broken.traceback}\n```")

    @dg.asset(
        key=key,
        group_name=f"{dagster_name(name)}__not_loaded",
        # Lists of assets show the first words, without their Markdown.
        description=f"Not loaded, because the settings in its file are wrong:\n\n{listed}\n\n{_EXPLAINED}",
        kinds={"yaml"},
        metadata=metadata,
    )
    def not_loaded() -> None:
        raise dg.Failure(message, allow_retries=False)

    return dg.Definitions(assets=[not_loaded])
