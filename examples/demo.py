"""Both demos end to end: deduplicate emoji and docstrings, and print what was found.

Run by `make demo`, from the root of the repository. What was made before is not made again. `make demo ENGINE=ray` makes the
same on the workers of a Ray cluster that is started here for it, in a store of its own.
"""

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import yaml

from semdedup_assets.assets.refresh import refresh
from semdedup_assets.execution.item_lookup import find_items
from semdedup_assets.execution.openmp import let_threads_sleep
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.kept_sets import Clustering, Selection, Target
from semdedup_assets.records import Record, item_ids
from semdedup_assets.rendering.contact_sheet import Pair, contact_sheet
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import pipeline_context
from semdedup_assets.stages.manifest_tables import removed_rows

ROOT = Path(__file__).parent.parent
K = Clustering("auto")
SHEET = Path(".demo/emoji_removed_pairs.png")


@dataclass(frozen=True)
class Truth:
    """Precision and recall of what was removed, against what is known of the items.

    Attributes:
        precision: share of removed items whose kept neighbour shows the same figure, in whatever style or skin tone.
        other_tone: share of removed items whose kept neighbour is that figure in another skin tone.
        recall: share of the redundant items (a figure's items less one) that were removed.
    """

    precision: float
    other_tone: float
    recall: float


@dataclass(frozen=True)
class Drawing:
    """What an emoji shows; drawings that are byte for byte the same count as one figure, whatever their names."""

    figure: str
    concept: str


def load_pipeline(name: str, engine: str = "local") -> Pipeline:
    """The settings of a demo, as `semdedup_assets/defs/<name>/defs.yaml` has them; of another engine, with its own store."""
    text = (ROOT / "semdedup_assets" / "defs" / name / "defs.yaml").read_text()
    settings = yaml.safe_load(text)["attributes"]
    if engine != "local":
        settings |= {"store": f"{settings['store']}-{engine}", "compute": {"engine": engine, "address": "local"}}
    return Pipeline.model_validate(settings)


def materialise(pipeline: Pipeline, instance: dg.DagsterInstance) -> int:
    """Make what is missing or stale; returns how many partitions that were."""
    print(f"\n== {pipeline.dataset}: {pipeline.encoder.kind} on {pipeline.source.path}")
    made, started = 0, time.monotonic()
    for stage in refresh(pipeline, instance):
        seconds, started = time.monotonic() - started, time.monotonic()
        count = len(stage.partitions)
        done = f"{count} partition{'s' if count != 1 else ''} in {seconds:.1f} s" if count else "up to date"
        print(f"   {stage.asset:<17} {done}", flush=True)
        made += count
    return made


def records_by_id(pipeline: Pipeline) -> dict[int, Record]:
    """Every good record of the source, by the id it has in the pipeline."""
    records: dict[int, Record] = {}
    for shard in pipeline_context(pipeline).shards:
        found = [record for file in shard.files for record in pipeline.source.read(file.path)]
        ids = item_ids(shard.index, np.arange(len(found)))
        records |= {int(i): record for i, record in zip(ids, found, strict=True) if isinstance(record, Record)}
    return records


def removed_at(pipeline: Pipeline, target: Target) -> pl.DataFrame:
    """The items that are removed, by falling similarity to the kept item that each duplicates."""
    rows = removed_rows(pipeline_context(pipeline), Partition(clustering=K, target=target))
    return pl.concat(map(pl.DataFrame, rows)).sort("similarity", "id", descending=[True, False], nulls_last=True)


def report(pipeline: Pipeline, records: dict[int, Record], drawings: dict[int, Drawing]) -> None:
    """Print what was removed at each epsilon, and the largest groups at 0.05."""
    index = pipeline_context(pipeline).index
    print(f"\n   {'epsilon':>9} {'kept':>6} {'removed':>8} {'exact':>7} {'semantic':>9} {'orphans':>8}", end="")
    print(f" {'precision':>10} {'other tone':>11} {'recall':>7}" if drawings else "")
    for target in pipeline.targets:
        details = index.require("keep_masks", Partition(clustering=K, target=target)).details
        removed = removed_at(pipeline, target)
        exact = exact_share(removed, records)
        shares = [details["removed"] / details["items"] * part for part in (1, exact, 1 - exact)]
        line = f"   {target!s:>9} {details['kept']:>6} {shares[0]:>8.1%} {shares[1]:>7.1%} {shares[2]:>9.1%}"
        print(f"{line} {details['orphans']:>8}", end="")
        truth = against_truth(removed, drawings) if drawings else None
        print(f" {truth.precision:>10.1%} {truth.other_tone:>11.1%} {truth.recall:>7.1%}" if truth else "")
    report_analyses(pipeline)
    print_groups(pipeline, removed_at(pipeline, Target(epsilon=0.05)), records)


def report_analyses(pipeline: Pipeline) -> None:
    """Print what the search within clusters misses, and how far off the estimated epsilons were."""
    index, own = pipeline_context(pipeline).index, {target.epsilon for target in pipeline.targets}
    efficiency = index.require("detection_efficiency", Partition(clustering=K)).details["by_epsilon"]
    found = ", ".join(f"{row['eta_items']:.1%} at {row['epsilon']:g}" for row in efficiency if row["epsilon"] in own)
    print(f"\n   detection efficiency η (items with a duplicate that have one in their own cluster): {found}")
    errors = index.require("epsilon_estimate_errors", Partition(clustering=K)).details["errors"]
    found = ", ".join(f"{row['epsilon_error']:+.1%} at {float(row['target']):.0%}" for row in errors)
    print(f"   error of epsilons estimated from some clusters, in the share kept: {found}")


def exact_share(removed: pl.DataFrame, records: dict[int, Record]) -> float:
    """Share of the removed items that are byte-for-byte copies: one of each set of copies counts as the original."""
    copies = Counter(record.payload for record in records.values())
    gone = Counter(records[item].payload for item in removed["id"].to_list())
    exact = sum(min(count, copies[payload] - 1) for payload, count in gone.items())
    return exact / max(1, len(removed))


def against_truth(removed: pl.DataFrame, drawings: dict[int, Drawing]) -> Truth:
    """Hold the removed items against what each item is known to show."""
    pairs = [
        (drawings[a], drawings[b]) for a, b in zip(removed["id"].to_list(), removed["group"].to_list(), strict=True)
    ]
    same = [a.figure == b.figure for a, b in pairs]
    tone = [a.figure == b.figure and a.concept != b.concept for a, b in pairs]
    size, found = Counter(drawing.figure for drawing in drawings.values()), Counter(a.figure for a, _ in pairs)
    return Truth(
        precision=sum(same) / max(1, len(pairs)),
        other_tone=sum(tone) / max(1, len(pairs)),
        recall=sum(min(count, size[figure] - 1) for figure, count in found.items())
        / max(1, sum(count - 1 for count in size.values())),
    )


def print_groups(pipeline: Pipeline, removed: pl.DataFrame, records: dict[int, Record], most: int = 4) -> None:
    """Print the kept items that the most removed ones duplicate."""
    groups = defaultdict(list)
    for item, kept in zip(removed["id"].to_list(), removed["group"].to_list(), strict=True):
        groups[kept].append(item)
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:most]
    labels = item_labels(pipeline, records, [item for kept, items in largest for item in (kept, *items[:3])])
    print("\n   largest groups at epsilon 0.05")
    for kept, items in largest:
        print(f"   + kept    {labels[kept]}")
        for item in items[:3]:
            print(f"     removed {labels[item]}")
        if len(items) > 3:
            print(f"     … and {len(items) - 3} more")


def item_labels(pipeline: Pipeline, records: dict[int, Record], ids: list[int]) -> dict[int, str]:
    """One line for each item that tells a person which it is."""
    texts = pipeline.source.content == "text"
    found = find_items(pipeline_context(pipeline), ids, ["package", "name"] if texts else ["caption"])
    labels = {}
    for item, row in found.items():
        if texts:
            name, text = f"{row['package']}.{row['name'] or '__init__'}", " ".join(str(records[item].payload).split())
            labels[item] = f"{name[:40]:<40} {text[:70]!r}"
        else:
            labels[item] = f"{row['key']:<30} {row['caption']!r}"
    return labels


def emoji_drawings(pipeline: Pipeline) -> dict[int, Drawing]:
    """What each image shows, from the JSON in the tars: drawings of one figure are duplicates."""
    drawings: dict[int, Drawing] = {}
    figures: dict[bytes, str] = {}
    for shard in pipeline_context(pipeline).shards:
        samples = [sample for file in shard.files for sample in pipeline.source.samples(file.path)]
        ids = item_ids(shard.index, np.arange(len(samples)))
        for item, (_, members) in zip(ids.tolist(), samples, strict=True):
            shown = json.loads(members["json"])
            drawings[item] = Drawing(figures.setdefault(members["png"], shown["base"]), shown["concept"])
    return drawings


def report_protected(pipeline: Pipeline, column: str) -> None:
    """Print what is kept at each epsilon where the items of a bool column are never removed.

    The scores and masks of this selection lie in the store beside those of the pipeline's own; Dagster is not told.
    """
    protecting = pipeline.model_copy(update={"selection": Selection(protect=column)})
    context = pipeline_context(protecting)
    for stage in ("duplicate_scores", "keep_masks"):
        for _ in run_partitions(context, context.graph[stage], context.index.stale(stage)):
            pass
    print(f"\n   with `selection: {{protect: {column}}}`")
    print(f"   {'epsilon':>9} {'kept':>6} {'removed':>8} {'protected':>10} {'of which would be removed':>26}")
    for target in pipeline.targets:
        details = context.index.require("keep_masks", Partition(clustering=K, target=target)).details
        share, counts = (
            details["removed"] / details["items"],
            [details[f"protected{end}"] for end in ("", "_would_be_removed")],
        )
        print(f"   {target!s:>9} {details['kept']:>6} {share:>8.1%} {counts[0]:>10} {counts[1]:>26}")


def write_sheet(pipeline: Pipeline, records: dict[int, Record], drawings: dict[int, Drawing]) -> None:
    """Draw the removed pairs at epsilon 0.05, evenly from the most to the least similar; wrong ones are marked."""
    removed = removed_at(pipeline, Target(epsilon=0.05))
    chosen = removed[np.unique(np.linspace(0, len(removed) - 1, 36).astype(int))]
    captions = find_items(pipeline_context(pipeline), chosen["id"].to_list(), ["caption"])
    pairs = [
        Pair(
            removed=records[item].payload,
            kept=records[kept].payload,
            similarity=similarity,
            caption=str(captions[item]["caption"]),
            wrong=drawings[item].figure != drawings[kept].figure,
        )
        for item, kept, similarity in chosen.select("id", "group", "similarity").iter_rows()
    ]
    title = f"emoji, epsilon 0.05: {len(pairs)} of {len(removed)} removed images, from most to least similar"
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    SHEET.write_bytes(contact_sheet(pairs, title=f"{title} (red: another figure)"))


def main() -> None:
    """Run both demos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="what maps the stages' tasks")
    engine = parser.parse_args().engine
    let_threads_sleep()
    os.chdir(ROOT)
    started, made = time.monotonic(), 0
    # What lies in the UI's store is what the UI's record is about.
    with dg.DagsterInstance.get() if engine == "local" else dg.DagsterInstance.ephemeral() as instance:
        emoji, docstrings = load_pipeline("emoji", engine), load_pipeline("docstrings", engine)
        made += materialise(emoji, instance)
        records, drawings = records_by_id(emoji), emoji_drawings(emoji)
        report(emoji, records, drawings)
        report_protected(emoji, "has_skin_tone")
        write_sheet(emoji, records, drawings)
        made += materialise(docstrings, instance)
        report(docstrings, records_by_id(docstrings), {})
    print(f"\n{made} partitions made in {time.monotonic() - started:.0f} s")
    print(f"removed pairs: {SHEET}")
    print("see it in the UI: make ui   (then open http://localhost:3000)")


if __name__ == "__main__":
    main()
