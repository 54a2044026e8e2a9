"""The fault matrix: whatever is damaged, killed or full, nothing is lost, and nothing wrong is used silently."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.storage import tables, vectors
from semdedup_assets.storage.results import RECORD, DamagedResultError, ResultRecord, read_record
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

pytestmark = pytest.mark.slow

_ROUNDS = 6

# What makes every kind of result be read again: another k, another epsilon, another format; and another shard.
CHANGES: dict[str, Any] = {
    "clustering": {"k": [3, 4]},
    "epsilons": ["0.05", "0.1", "keep=50%"],
    "manifests": ["parquet"],
}
# A sample that is lost is drawn anew, of today's shards; of new scores and masks the old ones are not read.
WITHOUT_NEW_SHARD = {"training_sample", "duplicate_scores", "keep_masks"}


def shifted(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def zeroed(content: bytes) -> bytes:
    start = max(0, len(content) // 2 - 2048)
    return content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :]


OF_FILES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": shifted,
    "4 KiB of zeros": zeroed,
    "cut in half": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "deleted": lambda _: None,
}


def without_a_field(content: bytes) -> bytes:
    document = json.loads(content)
    document["record"].pop("inputs")
    return json.dumps(document).encode()


def with_one_more(content: bytes) -> bytes:
    document = json.loads(content)
    document["record"]["colour"] = "green"
    return json.dumps(document).encode()


OF_RECORDS: dict[str, Callable[[bytes], bytes | None]] = {
    **{name: OF_FILES[name] for name in ("a flipped bit", "cut in half", "emptied", "deleted")},
    "garbage": lambda _: b"\xff\xfegarbage",
    "without a field": without_a_field,
    "with one more": with_one_more,
}

# A file of each kind: stage, partition, name; those of manifests are read by trainers only.
FILES = [
    ("items", "s000001", "items.parquet"),
    ("embeddings", "s000001", "vectors.arrow"),
    ("training_sample", "", "sample.arrow"),
    ("centroids", "3", "centroids.npy"),
    ("assignments", "3|s000001", "assignments.arrow"),
    ("duplicate_scores", "b0000|3", "scores.parquet"),
    ("keep_masks", "0.05|3", ""),
]


def record_of(runs: StageRuns, stage: str, key: str) -> ResultRecord:
    """The record of a partition; of a bucket, that of its first range."""
    context = runs.context()
    partition = Partition.parse(key, context.graph[stage].dimensions)
    return next(iter(context.index.records(stage, partition).values()))


def read_afresh() -> None:
    """Forget what this process has held against its checksums: damage is found by whoever reads a file first."""
    vectors._verified.clear()
    tables._verified.clear()


def refresh(runs: StageRuns) -> list[str]:
    """Refresh as the job does, a round for each damaged result that is found; what was reported."""
    lines: list[str] = []
    with reporting_to(lines.append):
        for _ in range(_ROUNDS):
            try:
                runs.run()
            except DamagedResultError as error:
                lines.append(str(error))
            else:
                return lines
    pytest.fail(f"still damaged after {_ROUNDS} rounds: {lines}")


def versions(runs: StageRuns) -> dict[str, str]:
    """The content of every result by its path below the store."""
    store = Path(runs.settings["store"])
    paths = sorted(store.rglob(f"*{RECORD}"))
    found = {str(path.relative_to(store)): read_record(str(path).removesuffix(RECORD)) for path in paths}
    return {path: record.version for path, record in found.items() if record is not None}


def write_source(folder: Path, shards: int = 3) -> None:
    for seed in range(shards):
        write_shard(folder, f"{seed}", near_duplicates(seed))


class Damaged:
    """A sound store, and what refreshes with other settings make of it; each case damages a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_source(folder)
        self.sound = StageRuns(vectors_settings(folder, epsilons=["0.05", "keep=50%"]))
        self.sound.run()
        self.names = {
            (stage, key): name or next(iter(record_of(self.sound, stage, key).files)) for stage, key, name in FILES
        }
        shutil.copytree(folder / "store", folder / "copy")
        self._expected: dict[bool, StageRuns] = {}

    def copied(self, name: str, *, new_shard: bool) -> StageRuns:
        """A copy of the sound store, with other settings, on the source with or without a new shard."""
        if new_shard:
            write_shard(self.folder, "3", near_duplicates(3))
        else:
            (self.folder / "source" / "3.npy").unlink(missing_ok=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "copy", self.folder / name)
        return self.sound.changed(store=str(self.folder / name), **CHANGES)

    def expected(self, *, new_shard: bool) -> StageRuns:
        """What a refresh makes where nothing is damaged."""
        if new_shard not in self._expected:
            runs = self._expected[new_shard] = self.copied(f"expected {new_shard}", new_shard=new_shard)
            runs.run()
        return self._expected[new_shard]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return Damaged(tmp_path_factory.mktemp("damaged"))


def damage(path: Path, how: Callable[[bytes], bytes | None]) -> None:
    content = how(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    read_afresh()


# Zeros of every file are in `execution/test_damage.py`, and half of a file is found as none of it is: by its size.
@pytest.mark.parametrize(
    ("stage", "key", "how"),
    [
        *((stage, key, how) for stage, key, _ in FILES for how in ("a flipped bit", "cut in half", "deleted")),
        *((stage, key, how) for stage, key, _ in FILES[:2] for how in ("4 KiB of zeros", "emptied")),
    ],
)
def test_a_damaged_file_is_noticed_where_it_is_read_and_made_again(
    store: Damaged, stage: str, key: str, how: str
) -> None:
    new_shard = stage not in WITHOUT_NEW_SHARD
    expected = store.expected(new_shard=new_shard)
    runs = store.copied("case", new_shard=new_shard)
    path = Path(record_of(runs, stage, key).file(store.names[stage, key]).path)
    damage(path, OF_FILES[how])
    lines = refresh(runs)
    # The results, and all that a training job reads, are those of a sound store.
    assert versions(runs) == versions(expected)
    for target in ("0.05", "keep=50%"):
        assert runs.kept_keys(f"{target}|4") == expected.kept_keys(f"{target}|4")
    # One that is missing or of another size is seen in the listing; any other is named where it is read.
    if how in ("a flipped bit", "4 KiB of zeros"):
        assert any(str(path) in line and "is set aside" in line for line in lines), lines
    assert runs.run() == {}


@pytest.mark.parametrize("how", OF_RECORDS)
@pytest.mark.parametrize(("stage", "key"), [("items", "s000001"), ("centroids", "3"), ("assignments", "3|s000001")])
def test_a_damaged_record_is_made_again(store: Damaged, stage: str, key: str, how: str) -> None:
    expected = store.expected(new_shard=True)
    runs = store.copied("case", new_shard=True)
    damage(Path(f"{record_of(runs, stage, key).location}{RECORD}"), OF_RECORDS[how])
    refresh(runs)
    assert versions(runs) == versions(expected)
    assert runs.run() == {}


# Processes, one after the other, each of which ends itself at its n-th write to the disk, before or after the data are
# there; prints how many it took. Each is forked from one that has loaded the libraries and not used them.
_KILLED = """
import os, signal, sys
from pathlib import Path

import semdedup_assets.algorithm.deduplication
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import vectors_settings

real = os.fsync


def run(writes, after):
    def fsync(file):
        nonlocal writes
        writes -= 1
        if writes == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(file)
        if writes == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    StageRuns(vectors_settings(Path(sys.argv[1]), store=sys.argv[2])).run()


for kills in range(40):
    child = os.fork()
    if child == 0:
        # Later each time: a partition of several tasks is finished only as a whole.
        run(3 + 2 * kills, kills % 2 == 1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        print(kills)
        sys.exit()
    assert status == -signal.SIGKILL, status
sys.exit("it never came to its end")
"""


def test_a_refresh_that_is_killed_again_and_again_ends_as_one_that_never_was(tmp_path: Path) -> None:
    write_source(tmp_path)
    expected = StageRuns(vectors_settings(tmp_path))
    expected.run()
    store = str(tmp_path / "killed")
    command = [sys.executable, "-c", _KILLED, str(tmp_path), store]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) >= 5
    runs = expected.changed(store=store)
    assert versions(runs) == versions(expected)
    assert runs.kept_keys("0.05|3") == expected.kept_keys("0.05|3")
    assert runs.run() == {}


@pytest.mark.parametrize("stage", ["items", "embeddings", "assignments", "duplicate_scores", "keep_masks", "manifests"])
def test_a_disk_that_takes_no_more_fails_the_run_excludes_nothing_and_loses_nothing(tmp_path: Path, stage: str) -> None:
    """A limit on the size of files stands for a full disk: a write ends with an error of the system."""
    write_source(tmp_path)
    runs = StageRuns(vectors_settings(tmp_path))
    stages = [each.name for each in runs.graph.stages]
    if stages.index(stage):
        runs.run(until=stages[stages.index(stage) - 1])
    before = versions(runs)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{os.strerror(errno.EFBIG)}: '{tmp_path}/store/"):
            runs.run(until=stage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert versions(runs).items() >= before.items()
    assert runs.context().index.excluded(stage) == {} if stage in ("items", "embeddings") else True
    runs.run()
    assert runs.run() == {}
    assert len(runs.kept_keys("0.05|3")) > 0
