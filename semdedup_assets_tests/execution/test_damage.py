"""A store with damage is repaired by making again what is damaged, and gives what it gave before."""

from pathlib import Path

import pytest

from semdedup_assets.storage.results import DAMAGED, RECORD, DamagedResultError
from semdedup_assets_tests.stage_runs import METHOD, SoundStore, StageRuns, record_path, small_pipeline
from semdedup_assets_tests.storage.written import flip

FILES = [
    ("items", "items.parquet"),
    ("embeddings", "vectors.arrow"),
    ("training_sample", "sample.arrow"),
    ("centroids", "centroids.npy"),
    ("centroids", "clusters.parquet"),
    ("assignments", "assignments.arrow"),
    ("duplicate_scores", "scores.parquet"),
    ("keep_masks", "r0000.parquet"),
]
"""A file of each result that a later stage reads."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SoundStore:
    folder = tmp_path_factory.mktemp("sound")
    return SoundStore.made_by(small_pipeline(folder), folder)


def forget_what_follows(runs: StageRuns, stage: str) -> None:
    """Remove all records of the later stages, so that they must read this one's results."""
    names = [each.name for each in METHOD.stages]
    index = runs.context().index
    later = [record for name in names[names.index(stage) + 1 :] for record in index.records(name).values()]
    for record in later:
        record_path(record).unlink()


def run_with_repairs(runs: StageRuns) -> list[str]:
    """Run until all is made, as a refresh does; returns what was reported on the way."""
    reported: list[str] = []
    for _ in range(3):
        try:
            runs.run()
        except DamagedResultError as error:
            reported.append(str(error))
        else:
            return reported
    message = f"it is never whole: {reported}"
    raise AssertionError(message)


# Of vectors each part has its own checksum, any other file has one.
@pytest.mark.parametrize(
    ("stage", "name", "where"),
    [(*file, where) for file in FILES for where in ((0.1, 0.5, 0.9) if file[1].endswith("arrow") else (0.5,))],
)
def test_a_flipped_byte_is_noticed_where_it_is_read_and_made_again(
    sound: SoundStore, tmp_path: Path, stage: str, name: str, where: float
) -> None:
    runs = sound.copy(tmp_path)
    forget_what_follows(runs, stage)
    index = runs.context().index
    stored = index.stored(stage)[0]
    file = index.require(stage, stored).file(name)
    # Of vectors each part has its checksum; Arrow's own footer after them is not read.
    end = int(file.entry.size * 0.6) if name.endswith("arrow") else file.entry.size
    flip(file.path, int(end * where))
    (reported,) = run_with_repairs(runs)
    assert file.path in reported
    assert f"{file.location} is set aside" in reported
    assert Path(f"{file.location}{RECORD}{DAMAGED}").exists()
    assert runs.run() == {}
    assert runs.kept_keys("0.05|3") == sound.runs.kept_keys("0.05|3")
    assert runs.scores("3").equals(sound.runs.scores("3"))
    assert runs.masks("0.05|3").equals(sound.runs.masks("0.05|3"))


@pytest.mark.parametrize(("stage", "name"), FILES)
def test_zeros_in_place_of_a_file_are_noticed(sound: SoundStore, tmp_path: Path, stage: str, name: str) -> None:
    """As after a machine lost its power: the size is right."""
    runs = sound.copy(tmp_path)
    forget_what_follows(runs, stage)
    index = runs.context().index
    for stored in index.stored(stage):
        file = index.require(stage, stored).file(name)
        Path(file.path).write_bytes(b"\x00" * file.entry.size)
    for _ in range(len(index.stored(stage))):
        with pytest.raises(DamagedResultError):
            runs.run()
    assert run_with_repairs(runs) == []
    assert runs.kept_keys("0.05|3") == sound.runs.kept_keys("0.05|3")
