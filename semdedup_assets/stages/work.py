"""What every stage is given: the pipeline's settings, its place, and how to report progress."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

from semdedup_assets.compute import Compute
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.catalogue import Catalogue, Shard
from semdedup_assets.stages.code_version import code_version
from semdedup_assets.stages.measures import Measures
from semdedup_assets.storage.files import exists, join, read_bytes
from semdedup_assets.storage.layout import Layout
from semdedup_assets.storage.results import MissingResultError, Recipe, ResultWriter, read_recipe, writing

_REPORT_SECONDS = 15.0


def _terminal() -> TextIO | None:
    """The terminal this process was started from, if any; without one a bar would fill a log with half lines.

    While a step runs, Dagster sends standard error to the run's log: the terminal must be known before.
    """
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w") if sys.stderr.isatty() else None
    except (OSError, ValueError, AttributeError):
        return None


_TERMINAL = _terminal()


@dataclass
class Progress:
    """How far a stage is: a bar in a terminal, and now and then a line in the run's log."""

    title: str
    total: int | None
    unit: str
    log: Callable[[str], None]
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._reported = self.started
        self._bar = tqdm(
            total=self.total,
            desc=f"   {self.title}",
            unit=f" {self.unit}",
            file=_TERMINAL,
            disable=_TERMINAL is None,
            leave=False,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Say that `count` more units are done."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self.log(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        line = f"{self.title}: {self.done:,} {self.unit} done, {rate:,.1f} a second"
        if self.total and rate:
            line += f", {self.total - self.done:,} left, about {(self.total - self.done) / rate:,.0f} s"
        return line


def _silent(_: str) -> None:
    return


@dataclass(frozen=True)
class Work:
    """One pipeline at work.

    Attributes:
        pipeline: its settings.
        compute: where and how fast; changes no result.
        log: takes a line for the run's log.
        measures: of the partition at hand.
    """

    pipeline: Pipeline
    compute: Compute = field(default_factory=Compute)
    log: Callable[[str], None] = _silent
    measures: Measures = field(default_factory=Measures, repr=False, compare=False)
    _code_versions: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layout(self) -> Layout:
        """Where results lie."""
        return Layout(self.pipeline.store, self.pipeline.dataset, self.pipeline.model_name)

    def code_version(self, stage: str) -> str:
        """Hash of the settings that determine a stage's result."""
        if stage not in self._code_versions:
            # Hashing a local checkpoint takes a moment, too long for each of thousands of shards.
            self._code_versions[stage] = code_version(self.pipeline, stage)
        return self._code_versions[stage]

    @contextmanager
    def writing(self, stage: str, result: str, *, made_from: dict[str, str]) -> Iterator[ResultWriter]:
        """Write a stage's result, and note with it what it took since `measures` were last started.

        Args:
            stage: whose settings determine the result.
            result: its path, from `layout`.
            made_from: versions of what it is made from, by name.
        """
        with writing(result, code_version=self.code_version(stage), made_from=made_from) as writer:
            yield writer
            took = self.measures.taken(items=writer.details.get("items"))
            device = str(self.compute.torch_device)
            writer.details |= {**took, "bytes": sum(writer.files.values()), "device": device}

    def progress(self, title: str, *, total: int | None, unit: str) -> Progress:
        """Start to report on a stage."""
        return Progress(title, total, unit, self.log)

    def catalogue(self) -> Catalogue:
        """Which files the shards hold; empty before the source was first observed."""
        path = self.layout.catalogue
        return Catalogue.from_json(read_bytes(path)) if exists(path) else Catalogue.empty()

    def shards(self) -> tuple[Shard, ...]:
        """All shards.

        Raises:
            MissingResultError: the source has not been observed yet.
        """
        shards = self.catalogue().shards
        if not shards:
            message = f"{self.layout.catalogue}: no shard is known; observe {self.pipeline.dataset}/shards first"
            raise MissingResultError(message)
        return shards

    def cure(self, stage: str, partition: str = "") -> str:
        """What to do when a stage's result is missing."""
        where = f", partition {partition}" if partition else ""
        return f"materialise {self.pipeline.dataset}/{self.pipeline.model_name}/{stage}{where}"

    def embeddings(self, shard: str) -> Recipe:
        """The recipe of a shard's embeddings."""
        return read_recipe(self.layout.embeddings(shard), cure=self.cure("embeddings", shard))

    def centroids(self, k: str) -> Recipe:
        """The recipe of the centroids."""
        return read_recipe(self.layout.centroids(k), cure=self.cure("centroids", k))

    def assignments(self, k: str, shard: str) -> Recipe:
        """The recipe of a shard's assignments."""
        return read_recipe(self.layout.assignments(k, shard), cure=self.cure("assignments", f"{k}|{shard}"))

    def scores(self, k: str, bucket: str) -> Recipe:
        """The recipe of a bucket's scores."""
        return read_recipe(self.layout.scores(k, bucket), cure=self.cure("duplicate_scores", f"{bucket}|{k}"))

    def masks(self, k: str, epsilon: str) -> Recipe:
        """The recipe of the keep masks."""
        return read_recipe(self.layout.masks(k, epsilon), cure=self.cure("keep_masks", f"{epsilon}|{k}"))

    def manifest(self, k: str, epsilon: str) -> Recipe:
        """The recipe of the current manifest.

        Raises:
            MissingResultError: there is none yet, or it is incomplete.
        """
        pointer, cure = self.layout.current_manifest(k, epsilon), self.cure("manifests", f"{epsilon}|{k}")
        if not exists(pointer):
            message = f"{pointer}: no manifest yet; {cure}"
            raise MissingResultError(message)
        version = json.loads(read_bytes(pointer))["version"]
        return read_recipe(join(self.layout.manifest(k, epsilon, version), "manifest"), cure=cure)

    @property
    def buckets(self) -> list[str]:
        """Names of the buckets."""
        return [f"b{index:04d}" for index in range(self.pipeline.clustering.buckets)]


def quantiles(values: Any) -> dict[str, float]:
    """Least, median, 90 %, 99 % and greatest of some numbers; empty where there are none."""
    import numpy as np

    if len(values) == 0:
        return {}
    levels = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(values, level)) for name, level in levels.items()}
