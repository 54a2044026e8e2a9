"""Tables in Parquet, for anybody's tools."""

from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from semdedup_assets.storage.files import filesystem, is_local


def write_table(stream: IO[bytes], columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of equal length as one Parquet file."""
    with TableWriter(stream) as writer:
        writer.write(columns)


class TableWriter:
    """Writes a Parquet file piece by piece; masked arrays give nulls."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._writer: Any = None

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append rows as one row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {name: _arrow(values) for name, values in columns.items()}
        table = pa.table(arrays)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, table.schema, compression="zstd")
        self._writer.write_table(table)


def _arrow(values: np.ndarray) -> object:
    import pyarrow as pa

    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, mask=np.ma.getmaskarray(values))
    return pa.array(values)


def read_table(path: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a Parquet file as NumPy arrays; null integers read as 0."""
    parts = list(read_tables(path, columns))
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def read_tables(path: str, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Columns of a Parquet file, row group by row group; null integers read as 0."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs, name = filesystem(path)
    source = name if is_local(path) else fs.open(name, "rb")
    with pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(columns))
            # A 64-bit id must not pass through float64, which is what NumPy would be given for nulls.
            yield {
                name: (column.fill_null(0) if pa.types.is_integer(column.type) else column).to_numpy()
                for name, column in zip(columns, table.columns, strict=True)
            }
