"""Is a model that is trained on what SemDeDup keeps worth more than one of a random choice? An experiment on data that we ship.

Run by `make proof`, from the root of the repository. Writes `docs/proof.md`, which says how long it took, and its pictures,
whichever way the answer falls. Results lie in `.demo/proof`: what was trained is not trained again.
"""

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import numpy as np
import open_clip
import polars as pl
from proof.closed_form import EMOJI, ClosedForm, Point, curve, demo_vectors, read_drawings
from proof.models import language_model_folder
from reporting import Report, made

from semdedup_assets.algorithm.seed_spread import SeedSpread
from semdedup_assets.execution.openmp import let_threads_sleep
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.rendering.training_curves import MetricPanel, MetricPoint, SeedPanel, metric_panels, seed_panels
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import pipeline_context
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.training.evaluations import ROLES, against_baselines

ROOT = Path(__file__).parent.parent
DOCUMENT, IMAGES, OVERVIEW = ROOT / "docs" / "proof.md", ROOT / "docs" / "proof", ROOT / "docs" / "images" / "proof.png"
STORE = Path(".demo/proof")
FLUENT, TEXTS = Path("examples/proof/fluent.tar"), Path("examples/proof/texts.jsonl.gz")
DOCSTRINGS = Path("examples/docstrings/shards/00003.jsonl.gz")
SEEDS = 5
# Two of the experiments go on side by side, each with half of the cores; a model is trained by one thread.
SIDE_BY_SIDE = 2
AT_ONCE = max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)
# Of the images, the paper's share; of the texts a half.
IMAGES_KEPT, TEXTS_KEPT = "keep=63%", "keep=50%"
# A tenth of the items comes ten times: as many are kept as were there before.
PLANTED_SHARE, COPIES, PLANTED_KEPT = 0.1, 9, "keep=52.6%"
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 1024,
        "hf_tokenizer_name": "emoji-captions",
        "width": 64,
        "heads": 2,
        "layers": 1,
    },
}


def clip_folder(folder: Path) -> Path:
    """A small CLIP to be trained (1.5 million weights), with the demo's tokenizer of captions."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD), "size": 32}
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMOJI / "encoder" / name, folder / name)
    return folder


def image_pipeline() -> Pipeline:
    """The emoji, a small CLIP trained on what is kept of them, and another vendor's icons to find by their captions."""
    clip = clip_folder(STORE / "clip")
    settings: dict[str, Any] = {
        "dataset": "emoji",
        "model": "tiny-clip",
        "store": str(STORE),
        "source": {"kind": "webdataset", "path": str(EMOJI / "shards"), "columns": {"base": "string"}},
        "encoder": {"kind": "openclip", "model": str(EMOJI / "encoder"), "precision": "float32"},
        "clustering": {"k": ["auto"]},
        "epsilons": [IMAGES_KEPT],
        "manifests": ["parquet", "webdataset"],
        "analyses": {"random_pruning": {"seeds": list(range(SEEDS))}, "data_screen": {"columns": ["base"]}},
        "training": {
            "openclip": {
                "model": f"local-dir:{clip}",
                "epochs": 14,
                "batch_size": 64,
                "learning_rate": 2e-3,
                "warmup_steps": 20,
            },
            "budget": ["epochs", "steps"],
            "seeds": SEEDS,
            "against": ["everything", "random"],
            "at_once": AT_ONCE,
        },
        "evaluation": {"retrieval": {"fluent": str(FLUENT)}},
    }
    return Pipeline.model_validate(settings)


def text_pipeline(dataset: str, source: Path, *, kept: str, seeds: int) -> Pipeline:
    """API descriptions, and a small OPT trained on what is kept of them; two services are held out as a whole."""
    opt = STORE / "opt"
    if not (opt / "config.json").exists():
        language_model_folder((each["text"] for each in read_texts(TEXTS)), opt)
    settings: dict[str, Any] = {
        "dataset": dataset,
        "model": "static",
        "store": str(STORE),
        "source": {"kind": "jsonl", "path": str(source), "key": "key", "columns": {"service": "string"}},
        "encoder": {"kind": "sentence_transformers", "model": "examples/docstrings/encoder"},
        "clustering": {"k": ["auto"]},
        "epsilons": [kept],
        "manifests": ["parquet"],
        "analyses": {"random_pruning": {"seeds": list(range(SEEDS))}},
        "held_out": {"share": 0.08, "groups": {"column": "service", "share": 0.25}, "seed": 19},
        "training": {
            "causal_lm": {
                "model": str(opt),
                "epochs": 4,
                "context_tokens": 64,
                "batch_size": 4,
                "learning_rate": 2e-3,
                "warmup": 0.05,
            },
            "budget": "steps",
            "seeds": seeds,
            "against": ["everything", "random"],
            "at_once": AT_ONCE,
        },
        "evaluation": {"bits_per_byte": {"docstrings": str(other_texts(STORE / "docstrings.jsonl"))}},
    }
    return Pipeline.model_validate(settings)


def read_texts(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines."""
    with gzip.open(path, "rt") as stream:
        return [json.loads(line) for line in stream]


def other_texts(path: Path, *, count: int = 150) -> Path:
    """Some docstrings of the other demo, a corpus of another kind."""
    if not path.exists():
        chosen = read_texts(DOCSTRINGS)[:: 1500 // count][:count]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": each["text"]}) + "\n" for each in chosen))
    return path


def planted_texts(path: Path) -> Path:
    """Every second API description, a tenth of them ten times: copies differ in a word or two, in case or white space."""
    if path.exists():
        return path
    rng, texts = np.random.default_rng(0), read_texts(TEXTS)[::2]
    lines = [json.dumps(each) for each in texts]
    for at in rng.choice(len(texts), round(PLANTED_SHARE * len(texts)), replace=False).tolist():
        for copy in range(COPIES):
            words = texts[at]["text"].split()
            for _ in range(int(rng.integers(1, 3))):
                words[int(rng.integers(len(words)))] = words[int(rng.integers(len(words)))]
            text = (" ".join(words), "  ".join(words), " ".join(words).lower())[copy % 3]
            lines.append(json.dumps({**texts[at], "key": f"{texts[at]['key']}#{copy}", "text": text}))
    order = rng.permutation(len(lines)).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path.with_suffix(".partial"), "w", mtime=0) as stream:
        stream.write("".join(f"{lines[at]}\n" for at in order).encode())
    path.with_suffix(".partial").rename(path)
    return path


@dataclass(frozen=True)
class Experiment:
    """Trained and measured models of one kept set and its baselines.

    Attributes:
        screen: record of `data_screen`, which was made before anything was trained.
        record: of `evaluations`.
    """

    screen: ResultRecord
    record: ResultRecord

    @property
    def rows(self) -> pl.DataFrame:
        """A row for each metric of each model."""
        return pl.read_parquet(self.record.file("evaluations.parquet").path)

    def values(self, role: str, name: str, metric: str, budget: str) -> list[float]:
        """A metric of all seeds; recalls in percent."""
        chosen = (pl.col("role") == role) & (pl.col("set") == name) & (pl.col("metric") == metric)
        found = self.rows.filter(chosen & (pl.col("budget") == budget)).sort("seed")["value"]
        return ((100 if "recall" in metric else 1) * found).to_list()

    def compared(self, name: str, metric: str, budget: str) -> list[dict[str, Any]]:
        """What can be said of a metric against each baseline; recalls are percents."""
        values = {role: self.values(role, name, metric, budget) for role in ROLES}
        rows = against_baselines(values, higher_is_better=metric != "bits_per_byte")
        return [{"budget": f"equal {budget}", "measured": in_words(name, metric), **row} for row in rows]

    def verdicts(self, metrics: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """The same of some metrics, by each budget."""
        budgets = self.rows["budget"].unique(maintain_order=True).to_list()
        return [row for budget in budgets for name, metric in metrics for row in self.compared(name, metric, budget)]


def in_words(name: str, metric: str) -> str:
    """A metric and its set as the head of a column."""
    words = {"image_to_text": "image to caption", "text_to_image": "caption to image"}
    for before, after in words.items():
        metric = metric.replace(f"{before}_recall@", f"{after} R@")
    return metric if "R@" in metric else name


def experiment(pipeline: Pipeline) -> Experiment:
    """Screen, train and measure; what is there is not made again."""
    update_shard_index(pipeline_context(pipeline))
    context, partition = pipeline_context(pipeline), f"{pipeline.epsilons[0]}|auto"
    screen = made(context, "data_screen", partition)
    print(f"   screen: {screen.details['verdict']}: {'; '.join(screen.details['reasons'])}", flush=True)
    record = made(context, "evaluations", partition)
    return Experiment(screen, record)


def columns_of(found: Experiment, metrics: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each kind of training set and budget, a column for each metric: mean ± standard deviation over seeds."""
    rows = []
    for role, budget in found.rows.select("role", "budget").unique(maintain_order=True).iter_rows():
        own = found.rows.filter((pl.col("role") == role) & (pl.col("budget") == budget))
        row: dict[str, Any] = {
            "trained on": ROLES[role],
            "budget": f"equal {budget}",
            "share": f"{own['share'].mean():.0%}",
            "steps": round(own["steps"].mean() or 0),
        }
        for name, metric in metrics:
            row[in_words(name, metric)] = str(SeedSpread.of(found.values(role, name, metric, budget)))
        rows.append(row)
    return rows


RECALLS = [("fluent", f"{way}_recall@{k}") for k in (5, 1, 10) for way in ("image_to_text", "text_to_image")]
BITS = [(name, "bits_per_byte") for name in ("random", "dedup", "novel", "unseen", "docstrings")]


def images_section(report: Report, found: Experiment) -> None:
    """Add the experiment on images."""
    report.add(
        f"## Images: CLIP on {IMAGES_KEPT.removeprefix('keep=')} of the emoji",
        "",
        "OpenCLIP's own trainer, a model of 1.5 million weights, 14 passes; tested on icons of a vendor that no model saw: the",
        "caption of an image is to be found among 253, and an image by its caption. Recall in percent, mean ± standard deviation",
        f"over {SEEDS} seeds; each seed of `random` has a choice of its own.",
    )
    report.add(
        f"The screen, before training: {found.screen.details['verdict']}. {'. '.join(found.screen.details['reasons'])}."
    )
    report.table(columns_of(found, RECALLS))
    report.table(found.verdicts(RECALLS[:2]))
    report.picture(
        found.record.file("evaluations.png").content(), "images", "Recall of the models, by what they were trained on"
    )


def texts_section(report: Report, found: Experiment) -> None:
    """Add the experiment on texts."""
    report.add(
        f"## Texts: OPT on {TEXTS_KEPT.removeprefix('keep=')} of the API descriptions",
        "",
        "`OPTForCausalLM`, 2 layers of 128, for as many steps as four passes over everything take, so that all saw as many tokens.",
        "Bits per byte, lower is better. *random*: a random split, held out; *dedup*: without near duplicates of each other; *novel*:",
        "without a near duplicate in the training data; *unseen*: two whole services; *docstrings*: a corpus of another kind.",
        "The random split rewards whoever knows the duplicates by heart: SemDeDup is expected to lose there.",
    )
    report.add(
        f"The screen, before training: {found.screen.details['verdict']}. {'. '.join(found.screen.details['reasons'])}."
    )
    report.table(columns_of(found, BITS))
    report.table(found.verdicts(BITS))
    report.picture(
        found.record.file("evaluations.png").content(), "texts", "Bits per byte, by what the models were trained on"
    )


def planted_section(report: Report, found: Experiment) -> None:
    """Add the control whose effect must be large."""
    report.add(
        "## Control: planted duplicates",
        "",
        "Half of the API descriptions, a tenth of them ten times with a word or two, case or white space changed, so that nearly half",
        "of the set are planted. As above, with three seeds. If SemDeDup were of use anywhere, it would be here.",
    )
    report.table(columns_of(found, BITS))
    report.table(found.verdicts(BITS))


def closed_form_section(report: Report, points: Sequence[Point]) -> None:
    """Add the curve of the model that is solved for."""
    report.add(
        "## The whole curve, without training",
        "",
        "Ridge regression of captions on features of image patches ([closed_form.py](../examples/proof/closed_form.py)): no steps, no",
        "learning rate, so only the data differ. Recall from image to caption on the same test icons, in percent, with the",
        "paper's strategies of whom to keep; `exact` removes byte-equal copies alone.",
    )
    report.table(
        [
            {"kept by": point.choice, "share": f"{point.share:.0%}", "R@1": str(point.spread("at_1")),
             "R@5": str(point.spread("at_5"))}
            for point in points
        ]
    )  # fmt: skip
    report.picture(curve_picture(points), "curve", "Recall by share kept, by a model that is solved for")


def curve_picture(points: Sequence[Point]) -> bytes:
    """The recall among the first five against the share kept."""
    lines = {
        name: [_metric_point(point) for point in points if point.choice == choice]
        for name, choice in (("SemDeDup", "semdedup, hard"), ("SemDeDup, easy", "semdedup, easy"), ("random", "random"))
    }
    levels = {"everything": _metric_point(next(point for point in points if point.choice == "full"))}
    panel = MetricPanel("R@5, image to caption, %", lines=lines, levels=levels, higher_is_better=True)
    note = "1,364 emoji of two vendors, tested on 253 icons of a third; bands: one standard deviation of five seeds"
    return metric_panels([panel], x_label="share kept", title="Recall by share kept", note=note)


def _metric_point(point: Point) -> MetricPoint:
    spread = point.spread("at_5")
    return MetricPoint(point.share, spread.mean, spread.deviation)


def overview(images: Experiment, texts: Experiment) -> bytes:
    """The README's picture: what the models are worth that were trained on everything, on SemDeDup's and on random shares."""
    chosen = [
        (images, "epochs", "fluent", "image_to_text_recall@5", "Images, R@5 in %, equal passes", True),
        (images, "steps", "fluent", "image_to_text_recall@5", "Images, R@5 in %, equal steps", True),
        (texts, "steps", "novel", "bits_per_byte", "Texts, bits per byte, novel", False),
        (texts, "steps", "random", "bits_per_byte", "Texts, bits per byte, random split", False),
    ]
    panels = [
        SeedPanel(title, higher, {
            name: values for role, name in ROLES.items() if (values := found.values(role, data, metric, budget))
        })
        for found, budget, data, metric, title, higher in chosen
    ]  # fmt: skip
    note = f"{IMAGES_KEPT.removeprefix('keep=')} of 1,364 emoji, half of 2,583 API descriptions; each point is a seed"
    return seed_panels(panels, title="Models trained on what is kept", note=note)


def answers(images: Experiment, texts: Experiment, planted: Experiment, points: Sequence[Point]) -> Iterator[str]:
    """One line for each question, as it was found."""
    for found, what, name, metric, budgets in (
        (images, f"images, {IMAGES_KEPT}, R@5 in percent of another vendor's icons", "fluent",
         "image_to_text_recall@5", ("epochs", "steps")),
        (texts, f"texts, {TEXTS_KEPT}, bits per byte of novel texts", "novel", "bits_per_byte", ("steps",)),
        (texts, f"texts, {TEXTS_KEPT}, bits per byte of unseen services", "unseen", "bits_per_byte", ("steps",)),
        (texts, f"texts, {TEXTS_KEPT}, bits per byte of a random split", "random", "bits_per_byte", ("steps",)),
        (planted, "planted duplicates, bits per byte of novel texts", "novel", "bits_per_byte", ("steps",)),
    ):  # fmt: skip
        for budget in budgets:
            rows = found.compared(name, metric, budget)
            told = "; ".join(f"{row['against']} {row['its value']}: {row['verdict']}" for row in rows)
            yield f"- {what}, equal {budget}: SemDeDup {rows[0]['SemDeDup']}; {told}"
    least = min(point.share for point in points)
    ends = {point.choice: str(point.spread("at_5")) for point in points if point.share == least}
    yield (
        f"- images, without training, R@5 at {least:.0%}: SemDeDup {ends['semdedup, hard']} (hard), {ends['semdedup, easy']} (easy), random "
        f"{ends['random']}, everything {points[0].spread('at_5')}"
    )


LITERATURE = (
    "## Beside the literature",
    "",
    "- For: Abbas et al. 2023 (LAION-440M, CLIP ViT-B/16): half of the data costs little in, and gains a little out of distribution.",
    "  BAAI's pruning of LAION-2B (OpenCLIP B/32, samples seen fixed): everything 59.75, 65 % kept 61.11, 50 % 61.62, 30 % 60.26.",
    "- Against too much of it: the same, 20 % kept: 56.73. `hard` is not the best choice of whom to keep there: 66.30 against 66.81",
    "  of the middle of the similarities to the centroid (CLIPA-B/16).",
    "- Nothing gained: full fuzzy deduplication of DCLM changed no score (Zyphra); 25 % duplication of TinyStories is nearly free,",
    "  100 % ruinous (arXiv 2411.15821); semantic duplicates cost small models little, capable ones more (arXiv 2603.06603).",
)


def write(images: Experiment, texts: Experiment, planted: Experiment, points: Sequence[Point], took: str) -> None:
    """Write the document, and print the answers."""
    found = list(answers(images, texts, planted, points))
    print("\n".join(["", "Answer:", *found]))
    report = Report(IMAGES)
    report.add(
        "# What a model trained on the kept items is worth",
        "",
        "Written by `make proof` ([proof_of_value.py](../examples/proof_of_value.py)) on data that the repository ships",
        f"([credits](../examples/proof/README.md)): {took}. Small models",
        "on small data: what matters is which differences are clear, not how large they are. A difference is called *better* or",
        "*worse* only beyond two pooled standard deviations of the seeds, else *within the spread*.",
    )
    report.add("## Answer", "", *found)
    images_section(report, images)
    texts_section(report, texts)
    closed_form_section(report, points)
    planted_section(report, planted)
    report.add(*LITERATURE)
    DOCUMENT.write_text("\n".join(report.lines).rstrip() + "\n")
    OVERVIEW.write_bytes(overview(images, texts))


def spent(seconds: float) -> str:
    """What the run took that made most of it: another one finds what that made."""
    note, used = STORE / "spent.json", getrusage(RUSAGE_CHILDREN)
    now = [used.ru_utime + used.ru_stime, seconds]
    computing, longest = max(now, json.loads(note.read_text()) if note.exists() else now)
    note.write_text(json.dumps([computing, longest]))
    return f"{longest / 60:.0f} minutes on {os.cpu_count()} cores, {computing / 60:.0f} core minutes"


def on_images() -> Experiment:
    """CLIP on the paper's share of the emoji."""
    return experiment(image_pipeline())


def on_texts() -> Experiment:
    """OPT on half of the API descriptions."""
    return experiment(text_pipeline("api-texts", TEXTS, kept=TEXTS_KEPT, seeds=SEEDS))


def on_planted() -> Experiment:
    """The control whose effect must be large."""
    source = planted_texts(STORE / "planted.jsonl.gz")
    return experiment(text_pipeline("planted", source, kept=PLANTED_KEPT, seeds=3))


def without_training() -> list[Point]:
    """The whole curve."""
    pool = read_drawings(sorted((EMOJI / "shards").glob("*.tar")))
    model = ClosedForm.of(pool, read_drawings([FLUENT]))
    return list(curve(model, pool, demo_vectors(pool)))


def told(part: Callable[[], Any]) -> Any:
    """What a part gives, which says on the way how far it is."""
    with reporting_to(lambda line: print(f"   {line}", flush=True)):
        return part()


def main() -> None:
    """Run the experiment, begun in the order of what it costs to be wrong: images, texts, the curve, the control."""
    let_threads_sleep()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    IMAGES.mkdir(exist_ok=True)
    started = time.monotonic()
    with ProcessPoolExecutor(SIDE_BY_SIDE, get_context("spawn")) as pool:
        parts = [pool.submit(told, part) for part in (on_images, on_texts, without_training, on_planted)]
        images, texts, points, control = (part.result() for part in parts)
    took = spent(time.monotonic() - started)
    write(images, texts, control, points, took)
    print(f"\n{DOCUMENT.relative_to(ROOT)}: {took}")


if __name__ == "__main__":
    main()
