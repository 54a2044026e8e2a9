"""The settings of a pipeline: one dataset and one embedding model, as they stand in a `defs.yaml`."""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from semdedup_assets.algorithm.sampling import FEWEST_PER_CLUSTER
from semdedup_assets.analysis_settings import Analyses
from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Encoder
from semdedup_assets.kept_sets import Clustering, KeepColumn, Selection, Target, distinct
from semdedup_assets.sources import Source
from semdedup_assets.sources.paths import takes_all_below
from semdedup_assets.sources.shard_sizes import grouped
from semdedup_assets.storage.files import FileStat, join, protocol_of
from semdedup_assets.training_settings import HELD_OUT_SETS, Evaluation, HeldOut, Training, placeholders

MOST_PARTITIONS = 10_000
"""Partitions of an asset beyond which Dagster's pages and ticks become slow."""

# With so many, centroids group as those of all items do: docs/performance.md has the measurement.
_PER_CLUSTER = 256
_RESERVED = {"id", "key", "shard", "row", "file", "file_row", "vector", "group", "group_size", "weight"}
# Neither files nor what a process holds in memory are there on another machine.
_OF_THIS_MACHINE = {"file", "local", "memory"}
# No longer than a file's name may be, with what is put before and behind it.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _cluster_count(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        message = f"{value!r} is not a positive number of clusters, nor `auto`; 50 to 10,000 items a cluster is usual"
        raise ValueError(message)
    return str(int(value))


def _target(value: Any) -> str:
    return str(Target.parse(value))


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


ClusterCount = Annotated[str, BeforeValidator(_cluster_count)]
EpsilonOrShare = Annotated[str, BeforeValidator(_target)]

ManifestFormat = Literal["parquet", "removed", "keep_lists", "csv", "jsonl", "webdataset", "filtered"]
SOURCES_OF_FORMATS: dict[ManifestFormat, tuple[str, ...]] = {
    "csv": ("folder",),
    "webdataset": ("webdataset", "folder"),
    "jsonl": ("jsonl",),
    "filtered": ("parquet", "vectors", "jsonl", "webdataset"),
}
"""The kinds of source that a manifest format needs; the others are of any."""


class Shards(BaseModel, frozen=True, extra="forbid"):
    """How files are joined to shards."""

    files_per_shard: int | None = Field(
        None,
        ge=1,
        description="Source files in a new shard, so many that it has 10,000 to 1,000,000 items. Empty: of a folder of "
        "images 10,000 or a GiB; other files one by one, and more than a thousand joined to a GiB. Files stay in the "
        "shard they once came to: a later change counts for new files only.",
    )


class TrainingSample(BaseModel, frozen=True, extra="forbid"):
    """What the centroids are fitted to."""

    size: Annotated[int, Field(ge=1)] | Literal["auto", "all"] = Field(
        "auto",
        description="Vectors that are drawn, uniformly, from all embeddings; `auto`: `per_cluster` (256 where that is `all`) "
        "for each cluster of the greatest k; or `all`.",
    )
    per_cluster: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        _PER_CLUSTER, description="Vectors for each cluster that a fit uses at most, of those drawn; or `all`."
    )
    seed: int = Field(0, ge=0, description="Of the choice of items.")

    def drawn(self, items: int, *, k: int) -> int:
        """Vectors that are drawn of some items, where k is the greatest number of clusters."""
        if self.size == "all":
            return items
        usual = _PER_CLUSTER if self.per_cluster == "all" else self.per_cluster
        return min(items, k * usual if self.size == "auto" else self.size)

    @property
    def wanted_per_cluster(self) -> int:
        """Sampled vectors for each cluster below which a check reports a fit, unless there are no more items."""
        wanted = _PER_CLUSTER if self.per_cluster == "all" else self.per_cluster
        return max(FEWEST_PER_CLUSTER, wanted) if self.size == "auto" else FEWEST_PER_CLUSTER

    def fitted(self, drawn: int, *, k: int) -> int:
        """Vectors that a fit of k clusters uses, of those that are drawn."""
        return drawn if self.per_cluster == "all" else min(drawn, k * self.per_cluster)


class ClusteringSettings(BaseModel, frozen=True, extra="forbid"):
    """Spherical k-means."""

    k: Annotated[tuple[ClusterCount, ...], AfterValidator(distinct)] = Field(
        ("auto",), min_length=1, description="Numbers of clusters, each a partition; `auto` is about sqrt(items / 2)."
    )
    iterations: int | None = Field(
        None, ge=1, description="Passes over the sample; empty: 100, for text 20 (paper, appendix G)."
    )
    seed: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_one_or_several), AfterValidator(distinct)
    ] = Field(
        (0,),
        min_length=1,
        description="Of the first centroids: one, or a list, each with every k a partition of its own (`1000-seed1`).",
    )
    engine: Literal["auto", "faiss", "int8", "torch"] = Field(
        "auto",
        description="What fits the centroids: `torch` and `faiss`, on the GPUs that `compute.device` allows, else on the "
        "CPU; `int8`, on the CPU. `auto` is `torch` on GPUs, and on the CPU the faster of the others. Their objective is "
        "about the same, their centroids differ.",
    )
    buckets: int = Field(
        4,
        ge=1,
        description="Ranges of clusters that are scored apart; about one for each GiB of vectors is right. Changes no "
        "result, and nothing is made again when it changes.",
    )


class Galleries(BaseModel, frozen=True, extra="forbid"):
    """How much the galleries show: items are read from the source again, so this bounds what is read."""

    groups: int = Field(12, ge=1, le=20, description="Largest groups of duplicates that are shown.")
    seeds: int = Field(6, ge=1, description="Items that are shown with their neighbours at rising epsilon.")
    items: int = Field(8, ge=2, description="Items of a group, and neighbours of a seed, that are shown.")
    mib: int = Field(
        2048,
        ge=1,
        description="MiB of the source that are read at most: of a file only what leads to the items that are shown. Items "
        "beyond are only named.",
    )
    seed: int = Field(0, ge=0, description="Of the choice of seed items.")


class Reference(BaseModel, frozen=True, extra="forbid"):
    """Data that are never in a manifest: an evaluation set, or what was trained on before."""

    source: Source = Field(description="Where its items come from; of the same content as the pipeline's own source.")
    epsilon: float = Field(
        0.05,
        ge=0,
        le=2,
        description="Training items more similar than 1 - epsilon to one of its items are listed, whatever the epsilons "
        "of the kept sets.",
    )
    remove: bool = Field(
        default=False, description="Whether these training items are removed from every kept set; protected ones stay."
    )
    clusters: int | None = Field(
        None,
        ge=1,
        description="Clusters that each of its items is compared with at most, the nearest ones; empty: every cluster "
        "in which an item within epsilon can lie, so that none is missed.",
    )


class Refresh(BaseModel, frozen=True, extra="forbid"):
    """How results follow the source."""

    automatic: bool = Field(
        default=False,
        description="Whether what is missing or stale is made as files arrive, from the start; can be switched in the UI.",
    )
    schedule: str | None = Field(
        None,
        pattern=r"^(@(hourly|daily|weekly|monthly)|\S+( +\S+){4})$",
        description="Cron expression, such as `0 3 * * *`: when the source is looked through, and whatever is missing, "
        "stale or excluded is made in one run; empty: never.",
    )
    interval_seconds: int = Field(
        60,
        ge=5,
        description="How often the source is looked through, and what is missing or stale is looked for.",
    )
    partitions_per_run: int | None = Field(
        None,
        ge=1,
        description="Partitions of an asset that one run makes where a backfill launches many, so that "
        "Dagster's launcher spreads the runs over machines; empty: one run makes them all and loads a model once.",
    )
    attempts: int = Field(3, ge=1, description="How often a shard that cannot be embedded is tried in one run.")
    retry_seconds: float = Field(30, ge=0, description="Pause before the failed shards of a run are tried again.")
    max_excluded: float = Field(
        0.05, ge=0, le=1, description="Share of shards, but always one, that may fail every attempt and be excluded."
    )
    max_vanished: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the source's files, but always one, that may be missing at a look; where more are, the source "
        "is taken to be away, and nothing is changed. 1 allows all, for sources whose files are replaced by others.",
    )
    max_drift: float = Field(
        0.05,
        gt=0,
        le=2,
        description="Loss of mean similarity to the centroids since training above which a check asks to refit.",
    )


class Pipeline(BaseModel, frozen=True, extra="forbid"):
    """One dataset deduplicated with one embedding model."""

    dataset: str = Field(
        pattern=_NAME,
        description="Name of the dataset, of at most 100 letters, digits, `.`, `_` and `-`: first part of asset keys and paths.",
    )
    model: str | None = Field(
        None,
        pattern=_NAME,
        description="Name of the model, of at most 100 letters, digits, `.`, `_` and `-`: second part of keys and paths; empty: the encoder's own.",
    )
    owners: tuple[str, ...] = Field(
        (), description="Who owns the assets: e-mail addresses, or teams such as `team:data`."
    )
    store: str = Field("data", min_length=1, description="Folder or URL below which all results lie.")
    source: Source = Field(description="Where the items come from.")
    encoder: Encoder = Field(description="What turns an item into a vector.")
    shards: Shards = Field(Shards(), description="How files are joined to shards.")
    embed_once: Literal["bytes", "decoded", "normalised", "never"] = Field(
        "bytes",
        description="What was seen in the shard is not embedded again but shares the vector: items of equal `bytes`; "
        "images of equal pixels too (`decoded`: each is decoded twice, which pays where the model is slow); texts that "
        "are equal but for white space too (`normalised`: the vectors of such texts change). Or `never`.",
    )
    vectors: Literal["float16", "float32"] = Field("float16", description="How vectors are stored.")
    max_skipped: float = Field(
        0.01, ge=0, le=1, description="Share of the dataset's invalid items above which a check fails."
    )
    cut_files: Literal["exclude", "accept"] = Field(
        "exclude",
        description="What becomes of a file that ends early (a tar cut off, half a .gz): its shard is tried again, then "
        "excluded; or what could be read of it is accepted, and a check reports it.",
    )
    training_sample: TrainingSample = Field(TrainingSample(), description="What the centroids are fitted to.")
    clustering: ClusteringSettings = Field(ClusteringSettings(), description="Spherical k-means.")
    selection: Selection = Field(
        Selection(), description="Which item of a group is kept; for several, see `selections`."
    )
    selections: dict[Annotated[str, Field(pattern=_NAME)], Selection] | None = Field(
        None,
        min_length=1,
        description="Several selections by name, in place of `selection`: each has scores, masks and manifests of its "
        "own, below the embeddings, centroids and assignments that all share.",
    )
    epsilons: Annotated[tuple[EpsilonOrShare, ...], AfterValidator(distinct)] = Field(
        ("0.05", "keep=50%"), min_length=1, description="Each a partition: an epsilon, or a share to keep."
    )
    manifests: Annotated[tuple[ManifestFormat, ...], AfterValidator(distinct)] = Field(
        ("parquet", "removed", "keep_lists"),
        min_length=1,
        description="What is written: the kept items for training jobs, and what was removed (`removed`).",
    )
    manifest_weight: Literal["group_size", "inverse_group_size"] | None = Field(
        None,
        description="A column `weight` in the formats `parquet` and `removed`: `group_size` lets each kept item count for all that it "
        "stands for, so that the distribution stays; `inverse_group_size` is for those who weigh duplicates down and "
        "remove none: 1 / size of the group, of kept and removed items alike. Empty: no such column.",
    )
    galleries: Galleries = Field(Galleries(), description="How much the galleries show.")
    analyses: Analyses = Field(Analyses(), description="What is measured of the dataset beside the main way.")
    references: dict[Annotated[str, Field(pattern=_NAME)], Reference] = Field(
        {},
        description="Evaluation sets and other data that are never in a manifest, by name, such as `{test: {source: {kind: "
        "folder, path: data/test}, remove: true}}`: the training items near to theirs are listed and counted, and removed "
        "where that is wanted.",
    )
    held_out: HeldOut | None = Field(
        None,
        description="Items that are held out of everything for evaluation, such as `{share: 0.05}`: never embedded, in no "
        "manifest.",
    )
    training: Training | None = Field(
        None,
        description="What is trained on each kept set and on what it is held against, such as `{openclip: {}, seeds: 5}`; "
        "empty: nothing.",
    )
    evaluation: Evaluation = Field(Evaluation(), description="What the trained models are measured by.")
    refresh: Refresh = Field(Refresh(), description="How results follow the source.")
    compute: Compute = Field(Compute(), description="Where and how fast stages run: changes no result.")

    @model_validator(mode="after")
    def _fits_together(self) -> "Pipeline":
        found = (
            self._content_problem(),
            *self._store_problems(),
            self._sameness_problem(),
            self._random_pruning_problem(),
            self._column_problem(),
            self._selection_problem(),
            *self._selections_problems(),
            self._manifest_problem(),
            *self._cluster_problems(),
            *self._held_out_problems(),
            *self._training_problems(),
            *self._screen_problems(),
            *(self._reference_problem(name, reference) for name, reference in self.references.items()),
        )
        problems = [problem for problem in found if problem]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _content_problem(self) -> str | None:
        if self.source.content == self.encoder.accepts:
            return None
        return (
            f"source.kind {self.source.kind!r} holds {self.source.content}s, "
            f"encoder.kind {self.encoder.kind!r} takes {self.encoder.accepts}s"
        )

    def _store_problems(self) -> Iterator[str]:
        """What would read its own results as data, at the next look at its files."""
        sources = {
            "source": self.source,
            **{f"references.{name}.source": each.source for name, each in self.references.items()},
        }
        for setting, source in sources.items():
            if takes_all_below(source.path, join(self.store, self.dataset)):
                yield (
                    f"store: results lie in {join(self.store, self.dataset)!r}, where `{setting}.path`, {source.path!r}, takes "
                    "all files, so that they would become data; use another store, or one below a folder whose name begins "
                    "with `.` or `_`, which is passed over"
                )

    def _sameness_problem(self) -> str | None:
        needed = {"decoded": "image", "normalised": "text"}.get(self.embed_once)
        if needed is None or self.source.content == needed:
            return None
        return f"embed_once: {self.embed_once!r} is for {needed}s, and the source holds {self.source.content}s; use `bytes`"

    def _random_pruning_problem(self) -> str | None:
        same, content = self.analyses.random_pruning.same, self.source.content
        if same == "items" or (content != "vector" and (same == "bytes" or content == "text")):
            return None
        return f"analyses.random_pruning.same: a source of {content}s has no {same}; use `items`"

    def _column_problem(self) -> str | None:
        reserved = sorted(_RESERVED & set(self.source.column_types))
        return (
            f"source.columns: {reserved} name columns of our own tables; rename them in the source"
            if reserved
            else None
        )

    def _selection_problem(self) -> str | None:
        if "selection" in self.model_fields_set and self.selections is not None:
            return "selections: give either `selection` or `selections`, not both"
        for first, second in combinations(self.selections or {}, 2):
            if re.sub("[-.]", "_", first) == re.sub("[-.]", "_", second):
                return f"selections: {first} and {second} are one to Dagster, which replaces `-` and `.` by `_`; rename one"
            if self.named_selections[first].path == self.named_selections[second].path:
                return f"selections: {first} and {second} keep the same items; remove one of them"
        return None

    def _selections_problems(self) -> Iterator[str | None]:
        for name, selection in self.named_selections.items():
            setting = "selection" if name is None else f"selections.{name}"
            yield self._rule_problem(setting, selection)
            yield from self._keep_problems(f"{setting}.keep", selection)
            yield from self._repair_problems(setting, selection)
            yield self._protect_problem(f"{setting}.protect", selection)
            yield from self._limit_problems(f"{setting}.limit", selection)
            yield self._caption_problem(f"{setting}.spare_captions_below", selection)

    def _rule_problem(self, setting: str, selection: Selection) -> str | None:
        shares = [target for target in self.targets if target.share is not None]
        if selection.rule == "greedy" and shares:
            return (
                f"{setting}.rule: `greedy` cannot be solved for {', '.join(map(str, shares))}: what it keeps does not "
                "only fall as epsilon rises, and each trial reads all vectors; give epsilons, or use the rule `chain`"
            )
        return None

    def _keep_problems(self, setting: str, selection: Selection) -> Iterator[str]:
        several, seen = isinstance(selection.keep, tuple), set[str]()
        for index, criterion in enumerate(selection.criteria):
            own = f"{setting}.{index}" if several else setting
            if not isinstance(criterion, KeepColumn):
                if index + 1 < len(selection.criteria):
                    yield f"{own}: {criterion!r} is not the last; it settles what columns leave open, put it at the end"
                continue
            if criterion.column in seen:
                yield f"{own}.column: {criterion.column!r} is there already; a second time it decides nothing, remove it"
            seen.add(criterion.column)
            problem = self._order_problem(criterion)
            if problem is not None:
                yield f"{own}.{problem}"

    def _repair_problems(self, setting: str, selection: Selection) -> Iterator[str]:
        repair = selection.repair
        if repair is None:
            return
        if selection.rule == "greedy":
            yield (
                f"{setting}.repair: the rule `greedy` needs all pairs within epsilon, and a repair finds the greatest "
                "similarity of each item; use the rule `chain`, or no repair"
            )
        removing = sorted(name for name, reference in self.references.items() if reference.remove)
        also = [f"references.{name}.remove" for name in removing]
        also += [] if selection.spare_captions_below is None else [f"{setting}.spare_captions_below"]
        if also:
            yield (
                f"{setting}.repair: cannot be combined with {', '.join(also)}: which kept item of another cluster stands "
                "for a removed one is found by scores alone; use one or the other"
            )
        beyond = [each for each in self.own_epsilons if each > repair.epsilon]
        if beyond:
            yield (
                f"{setting}.repair.epsilon: {', '.join(map(str, beyond))} of `epsilons` exceed it, and beyond it "
                f"duplicates in other clusters are not searched; set it to {max(beyond)}, which costs more, or remove them"
            )

    def _order_problem(self, keep: KeepColumn) -> str | None:
        """What is wrong with a column that orders items, after the name of the setting."""
        kind = self.source.column_types.get(keep.column)
        if kind is None:
            kinds = "int, uint, float or bool, or as string and rank its `values`"
            return (
                f"column: {keep.column!r} is not carried; declare it in source.columns as {kinds} ({self._carried()})"
            )
        if kind == "string" and keep.values is None:
            return (
                f"column: {keep.column!r} is carried as a string, which has no order of its own; rank its values, the "
                "preferred first (`values: [a, b]`), or declare it in source.columns as int, uint, float or bool"
            )
        if kind == "string" and "order" in keep.model_fields_set:
            return f"order: {keep.column!r} is ordered by `values`, the preferred first; remove `order`"
        if kind != "string" and keep.values is not None:
            return f"values: {keep.column!r} is carried as {kind}, which `order` orders; remove `values`"
        repeated = sorted({value for value in keep.values or () if (keep.values or ()).count(value) > 1})
        return f"values: {', '.join(map(repr, repeated))} listed more than once; list each once" if repeated else None

    def _protect_problem(self, setting: str, selection: Selection) -> str | None:
        if selection.protect is None:
            return None
        kind = self.source.column_types.get(selection.protect)
        if kind == "bool":
            return None
        found = f"is carried as {kind}" if kind else "is not carried"
        return (
            f"{setting}: {selection.protect!r} {found}; declare it in source.columns as bool ({self._carried('bool')})"
        )

    def _limit_problems(self, setting: str, selection: Selection) -> Iterator[str]:
        columns = [limit.column for limit in selection.limits]
        for index, column in enumerate(columns):
            own = f"{setting}.{index}.column" if len(columns) > 1 else f"{setting}.column"
            if column not in self.source.column_types:
                yield f"{own}: {column!r} is not carried; declare it in source.columns ({self._carried()})"
            if column in columns[:index]:
                yield f"{own}: {column!r} has a limit already; remove one of them"

    def _carried(self, *kinds: str) -> str:
        """The columns there are, of some types or of all, for a message."""
        found = sorted(name for name, kind in self.source.column_types.items() if not kinds or kind in kinds)
        return f"now: {found}"

    def _caption_problem(self, setting: str, selection: Selection) -> str | None:
        if selection.spare_captions_below is None:
            return None
        if self.encoder.kind != "openclip":
            return f"{setting}: encoder.kind {self.encoder.kind!r} has no text tower to compare captions by; use `openclip`"
        kind = self.source.column_types.get("caption", "nothing")
        if kind != "string":
            return (
                f"{setting}: source.columns: caption is carried as {kind}, not as a string, so no text can be compared"
            )
        shares = ", ".join(str(target) for target in self.targets if target.share is not None)
        solved = (
            f"{setting}: it cannot be solved for {shares}: which items captions spare depends on epsilon; give epsilons"
        )
        return solved if shares else None

    def _manifest_problem(self) -> str | None:
        kind = self.source.kind
        for name in self.manifests:
            needed = SOURCES_OF_FORMATS.get(name, (kind,))
            if kind not in needed:
                fitting = [each for each in get_args(ManifestFormat) if kind in SOURCES_OF_FORMATS.get(each, (kind,))]
                return (
                    f"manifests: {name!r} needs a source of kind {' or '.join(needed)}, not {kind!r}; of it there can be "
                    f"{', '.join(fitting)}"
                )
        return None

    def _held_out_problems(self) -> Iterator[str]:
        if self.held_out is None:
            return
        if self.source.content == "vector":
            yield "held_out: of ready vectors nothing can be trained or evaluated; remove it"
        groups = self.held_out.groups
        if groups is not None and groups.column not in self.source.column_types:
            yield (
                f"held_out.groups.column: {groups.column!r} is not carried; declare it in source.columns "
                f"({self._carried()})"
            )

    def _screen_problems(self) -> Iterator[str]:
        for index, column in enumerate(self.analyses.data_screen.columns):
            kind = self.source.column_types.get(column)
            if kind is None:
                yield (
                    f"analyses.data_screen.columns.{index}: {column!r} is not carried; declare it in source.columns "
                    f"({self._carried()})"
                )
            elif kind == "float":
                yield f"analyses.data_screen.columns.{index}: {column!r} is carried as float, whose values do not repeat; remove it"

    def _training_problems(self) -> Iterator[str]:
        training, evaluation, content = self.training, self.evaluation, self.source.content
        if training is None:
            if evaluation != Evaluation():
                yield "evaluation: there is no `training`, so nothing to measure; add it, or remove this"
            return
        if content == "vector" and training.command is None:
            yield "training: ready vectors cannot be trained on; give a `command` that knows what they stand for"
        if content == "vector" and "sized_random" in training.against:
            yield "training.against: ready vectors have no words or bytes; remove `sized_random`"
        if training.openclip is not None and content == "text":
            yield "training.openclip: trains on images with captions, and the source holds texts; use `causal_lm`"
        if training.causal_lm is not None and content == "image":
            yield "training.causal_lm: trains on texts, and the source holds images; use `openclip`"
        if "sized_random" in training.against and self.analyses.random_pruning.same != "items":
            yield (
                f"training.against: `random` keeps as many {self.analyses.random_pruning.same} already "
                "(`analyses.random_pruning.same`); remove `sized_random`"
            )
        yield from self._training_format_problems(training)
        yield from self._evaluation_problems(training)

    def _evaluation_problems(self, training: Training) -> Iterator[str]:
        evaluation = self.evaluation
        taken = sorted(set(evaluation.bits_per_byte) & set(HELD_OUT_SETS)) if self.held_out is not None else []
        if taken:
            yield f"evaluation.bits_per_byte: {', '.join(taken)} is the name of a set that `held_out` gives; rename yours"
        if self.held_out is None and evaluation.command and "held_out" in placeholders(evaluation.command):
            yield "evaluation.command: {held_out} are sets of held-out items, and nothing is held out; add `held_out`"
        if training.openclip is not None and evaluation.bits_per_byte:
            yield "evaluation.bits_per_byte: a CLIP has none; use `retrieval` or `zero_shot`"
        if training.causal_lm is not None and (evaluation.retrieval or evaluation.zero_shot):
            yield "evaluation: a language model sees no images; use `bits_per_byte` or `command`"

    def _training_format_problems(self, training: Training) -> Iterator[str]:
        there = set(self.manifests)
        if training.openclip is not None and not there & {"webdataset", "csv"}:
            yield "training.openclip: reads the manifest format `webdataset` or `csv`; add one to `manifests`"
        if training.causal_lm is not None and "parquet" not in there:
            yield "training.causal_lm: reads the manifest format `parquet`; add it to `manifests`"
        if training.command and "tars" in placeholders(training.command) and "webdataset" not in there:
            yield "training.command: {tars} are those of the manifest format `webdataset`; add it to `manifests`"

    def _cluster_problems(self) -> Iterator[str]:
        """What machines of a cluster would not find: they see this one's files only where that is declared."""
        if not self.compute.on_many_machines:
            return
        named = {
            "store": self.store,
            "source.path": self.source.path,
            **{f"references.{name}.source.path": each.source.path for name, each in self.references.items()},
        }
        for setting, path in named.items():
            if protocol_of(path) in _OF_THIS_MACHINE:
                yield (
                    f"{setting}: {path!r} is on this machine, and `compute.engine: ray` runs on the machines of a cluster; use "
                    "a URL such as s3://…, declare `compute.shared_paths: true` where every machine has the same files there "
                    "(a network file system), or use `compute.address: local`"
                )

    def _reference_problem(self, name: str, reference: Reference) -> str | None:
        if reference.source.content == self.source.content:
            return None
        return (
            f"references.{name}.source.kind: {reference.source.kind!r} holds {reference.source.content}s, the pipeline's own "
            f"source {self.source.content}s; one encoder embeds both"
        )

    def new_shards(self, files: Sequence[FileStat]) -> list[tuple[FileStat, ...]]:
        """How new files are joined to shards.

        Args:
            files: in the order in which they are joined.
        """
        one_item_each = self.source.kind == "folder"
        return list(grouped(files, files_per_shard=self.shards.files_per_shard, one_item_each=one_item_each))

    @property
    def model_name(self) -> str:
        """Second part of asset keys and paths."""
        return self.model or self.encoder.name

    @property
    def iterations(self) -> int:
        """Passes of k-means over the sample (paper, appendix G)."""
        return self.clustering.iterations or (20 if self.source.content == "text" else 100)

    @property
    def named_selections(self) -> dict[str | None, Selection]:
        """The selections by name; the only one has none where `selections` is not used."""
        if not self.selections:
            return {None: self.selection}
        named: dict[str | None, Selection] = {}
        named.update(self.selections.items())
        return named

    @property
    def clusterings(self) -> tuple[Clustering, ...]:
        """Every k with every seed."""
        return tuple(Clustering(k, seed) for k in self.clustering.k for seed in self.clustering.seed)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The epsilons and shares."""
        return tuple(Target.parse(text) for text in self.epsilons)

    @property
    def own_epsilons(self) -> tuple[float, ...]:
        """The targets that are epsilons, ascending; what epsilon a share stands for is known only by its masks."""
        return tuple(sorted(target.epsilon for target in self.targets if target.epsilon is not None))

    @property
    def largest_epsilon(self) -> float | None:
        """The greatest of these; None where all targets are shares."""
        return max(self.own_epsilons, default=None)
