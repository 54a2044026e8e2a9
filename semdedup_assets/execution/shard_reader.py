"""Read the files of a shard, and see that they are the ones that were observed."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Generic, NoReturn, TypeVar, cast

from semdedup_assets.execution.context import StageContext
from semdedup_assets.records import MOST_ROWS, TooManyRowsError, VectorBatch
from semdedup_assets.sources.reading import TruncatedFile
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.sources.stated_rows import stated_rows
from semdedup_assets.storage.files import FileStat, file_stat
from semdedup_assets.storage.results import ResultRecord

T = TypeVar("T")


class SourceChangedError(RuntimeError):
    """A source file is not the one that was observed; names it. Observing the source again mends that."""


class ShardReader(Generic[T]):
    """What is read of a shard's files, one after the other.

    Attributes:
        rows_by_file: path and number of records of each file that was begun, in the order of the shard's rows.
        cut_files: path and reason of each file that ends early and of which the part that could be read is accepted.
        passed_over: by reason, how many members of tars belong to no item.
    """

    def __init__(self, context: StageContext, shard: Shard, read: Callable[[str], Iterator[T]]) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            context: of the pipeline.
            shard: whose files are read.
            read: of the source: what a file holds.
        """
        self.rows_by_file: list[list[Any]] = []
        self.cut_files: list[list[str]] = []
        self.passed_over = Counter[str]()
        self._shard, self._read = shard, read
        self._accepts_cut = context.pipeline.cut_files == "accept"

    @property
    def rows(self) -> int:
        """How many records were read so far."""
        return sum(int(rows) for _, rows in self.rows_by_file)

    def __iter__(self) -> Iterator[T]:
        """Everything the files hold.

        Raises:
            TruncatedFile: a file ends early, and `cut_files` does not accept it.
            SourceChangedError: a file vanished, or was changed, since it was observed.
            TooManyRowsError: there are more rows than ids can number; before anything is read where the files state that.
            OSError: a file cannot be read for a cause of the machine or the store.
        """
        self._require_ids()
        read = 0
        for file in self._shard.files:
            counted: list[Any] = [file.path, 0]
            self.rows_by_file.append(counted)
            try:
                for record in self._records(file.path):
                    rows = len(record.keys) if isinstance(record, VectorBatch) else 1
                    counted[1] += rows
                    read += rows
                    if read > MOST_ROWS:
                        self._refuse(read)
                    yield record
            except TruncatedFile as cut:
                require_unchanged(file)
                if not self._accepts_cut:
                    message = f"{cut}; replace the file, or accept what could be read of it with `cut_files: accept`"
                    raise TruncatedFile(message) from cut
                self.cut_files.append([file.path, str(cut)])
                self.passed_over.update(cut.passed_over)
            except (ValueError, FileNotFoundError):
                # Of a file that is just being written nothing else can be expected.
                require_unchanged(file)
                raise
            # Afterwards: a file that was changed before or while it was read shows it now.
            require_unchanged(file)

    def _require_ids(self) -> None:
        """Look into the files only where there can be so many rows: each takes a byte at least, but for odd ones."""
        if sum(file.size for file in self._shard.files) >= MOST_ROWS:
            stated = sum(stated_rows(file.path) or 0 for file in self._shard.files)
            if stated > MOST_ROWS:
                self._refuse(stated)

    def _refuse(self, rows: int) -> NoReturn:
        files = self._shard.files
        remedy = "lower `shards.files_per_shard` in a new store" if len(files) > 1 else "split the file"
        message = (
            f"shard {self._shard.index} ({len(files):,} files, the first is {files[0].path}) has {rows:,} rows or more; ids "
            f"can number {MOST_ROWS:,} of a shard: {remedy}"
        )
        raise TooManyRowsError(message)

    def _records(self, path: str) -> Iterator[T]:
        """What a file holds; a source may return what it passed over at the end."""
        records = cast("Generator[T, None, Mapping[str, int] | None]", self._read(path))
        passed_over = yield from records
        self.passed_over.update(passed_over or {})


def require_unchanged(file: FileStat) -> None:
    """See that a source file is as it was when it was observed.

    Raises:
        SourceChangedError: it is not, or it vanished; names it.
    """
    change = change_of(file)
    if change is not None:
        message = f"{change}; observe the shards, and materialise again what is stale"
        raise SourceChangedError(message)


def change_of(file: FileStat) -> str | None:
    """How a source file differs from what was observed, in words; None where nothing shows that it does."""
    found = file_stat(file.path)
    if found is None:
        return f"{file.path} is no longer there"
    # A stamp may also cover what lies beside the file; its own comes first.
    same = found.size == file.size and file.stamp.startswith(found.stamp)
    return None if same else f"{file.path} was changed since it was observed"


def accepts_cut_files(context: StageContext, record: ResultRecord) -> bool:
    """Whether what was read of a shard counts: that of a file that ends early only where `cut_files` accepts it.

    Where it does, a shard that was excluded for such a file counts no longer.
    """
    if context.pipeline.cut_files == "accept":
        return not (record.excluded or "").startswith(TruncatedFile.__name__)
    return not record.details.get("cut_files")
