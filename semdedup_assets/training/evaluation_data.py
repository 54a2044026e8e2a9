"""The data sets that the settings name for evaluation: listed before anything is trained."""

from collections.abc import Iterator
from functools import cached_property

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.reference_files import files_fingerprint
from semdedup_assets.records import Invalid
from semdedup_assets.sources import JsonLines, WebDataset
from semdedup_assets.storage.files import FileStat, is_local
from semdedup_assets.training.metrics.image_sets import samples
from semdedup_assets.training.metrics.zero_shot import class_name
from semdedup_assets.training_settings import Evaluation


class MissingEvaluationDataError(FileNotFoundError):
    """A data set for evaluation is not there; names the setting and the path."""


class EvaluationSets:
    """The named data sets of an evaluation.

    Args:
        settings: of the evaluation.
    """

    def __init__(self, settings: Evaluation) -> None:
        self._settings = settings

    @cached_property
    def files(self) -> dict[str, list[FileStat]]:
        """The files of each, by its setting.

        Raises:
            MissingEvaluationDataError: one has none.
        """
        found, missing = {}, []
        for setting, path in self._settings.paths:
            try:
                found[setting] = _source(setting, path).files()
            except FileNotFoundError as error:
                missing.append(f"{setting}: {error}")
        if missing:
            raise MissingEvaluationDataError("; ".join(missing))
        return found

    def require_items(self) -> None:
        """Read the beginning of each set, as far as the first item that models can be measured by.

        Raises:
            MissingEvaluationDataError: a set has no file, or no such item.
            TruncatedFile: a file is damaged.
            ValueError: an image has a class that is not named.
        """
        problems = []
        for setting in self.files:
            first = ""
            for reason in _reasons(self._settings, setting):
                first = first or reason
                if not reason:
                    break
            else:
                problems.append(f"{setting}: nothing in it can be measured by ({first or 'it is empty'})")
        if problems:
            raise MissingEvaluationDataError("; ".join(problems))

    def version(self, setting: str) -> str:
        """What changes when a file of a set comes, vanishes or is changed."""
        return files_fingerprint(self.files[setting])


def require_evaluation_data(context: StageContext) -> None:
    """See that all data for evaluation is there and of use, before days are spent on training.

    Args:
        context: of the pipeline.

    Raises:
        MissingEvaluationDataError: a set has no file, or no item to measure by; names its setting and the first reason.
        TruncatedFile: a file is damaged.
        ValueError: an image has a class that is not named.
    """
    EvaluationSets(context.pipeline.evaluation).require_items()


def local_versions(settings: Evaluation) -> dict[str, str]:
    """The versions of the sets that lie on this machine, which are listed in no time; of none where nothing is there.

    Args:
        settings: of the evaluation.
    """
    found = {}
    for setting, path in settings.paths:
        if is_local(path):
            try:
                found[setting] = files_fingerprint(_source(setting, path).files())
            except FileNotFoundError:
                found[setting] = "missing"
    return found


def _reasons(settings: Evaluation, setting: str) -> Iterator[str]:
    """Of each item of a set why it cannot be measured by; empty where it can."""
    _, kind, name = setting.split(".", 2)
    if kind == "bits_per_byte":
        source = JsonLines(path=settings.bits_per_byte[name])
        for record in (record for file in source.files() for record in source.read(file.path)):
            yield record.reason if isinstance(record, Invalid) else ""
        return
    classes = settings.zero_shot[name.removesuffix(".path")] if kind == "zero_shot" else None
    for sample in samples(settings.retrieval[name] if classes is None else classes.path):
        if isinstance(sample, Invalid):
            yield sample.reason
        elif classes is None:
            yield "" if sample.caption else "no caption"
        else:
            yield "" if class_name(sample, classes) else "no class: neither cls nor txt"


def _source(setting: str, path: str) -> JsonLines | WebDataset:
    """What reads a set, by its setting."""
    if setting.startswith("evaluation.bits_per_byte"):
        return JsonLines(kind="jsonl", path=path)
    return WebDataset(kind="webdataset", path=path)
