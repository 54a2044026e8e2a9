"""The data sets that the settings name for evaluation: listed before anything is trained."""

from functools import cached_property

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.reference_files import files_fingerprint
from semdedup_assets.sources import JsonLines, WebDataset
from semdedup_assets.storage.files import FileStat, is_local
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

    def version(self, setting: str) -> str:
        """What changes when a file of a set comes, vanishes or is changed."""
        return files_fingerprint(self.files[setting])


def require_evaluation_data(context: StageContext) -> None:
    """See that all data for evaluation is there, before days are spent on training.

    Args:
        context: of the pipeline.

    Raises:
        MissingEvaluationDataError: a set has no file; names its setting and path.
    """
    _ = EvaluationSets(context.pipeline.evaluation).files


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


def _source(setting: str, path: str) -> JsonLines | WebDataset:
    """What reads a set, by its setting."""
    if setting.startswith("evaluation.bits_per_byte"):
        return JsonLines(kind="jsonl", path=path)
    return WebDataset(kind="webdataset", path=path)
