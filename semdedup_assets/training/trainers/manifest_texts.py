"""The texts of a manifest: its Parquet files carry what was embedded, whatever became of the source since."""

from collections.abc import Iterator

from semdedup_assets.storage.files import join, list_below, open_file

TEXT = "text"
"""The carried column that holds an item's text."""

_ROWS = 1024


def kept_texts(manifest: str, *, kept: int) -> Iterator[str]:
    """Every kept text, in the order of the source.

    Args:
        manifest: folder of a version of a manifest: local path or URL.
        kept: texts that it holds.

    Raises:
        ValueError: after the last text: there are more or fewer of them than were kept; or the manifest has no Parquet files,
            no texts, or a damaged file; names the remedy.
    """
    files = list_below(join(manifest, "parquet"), (".parquet",)).files
    if not files:
        message = f"{manifest}: holds no Parquet files to read texts from; name `parquet` in `manifests`"
        raise ValueError(message)
    found = 0
    for file in files:
        for text in _texts_of(file.path):
            found += 1
            yield text
    if found != kept:
        message = f"{manifest}: its Parquet files hold {found:,} texts, {kept:,} were kept; materialise it with `again`"
        raise ValueError(message)


def _texts_of(path: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(path) as stream:
        try:
            table = pq.ParquetFile(stream, page_checksum_verification=True)
            if TEXT not in table.schema_arrow.names:
                message = f"{path}: has no column {TEXT!r}; a language model is trained on a source of texts"
                raise ValueError(message)
            for batch in table.iter_batches(batch_size=_ROWS, columns=[TEXT]):
                yield from batch.column(TEXT).drop_null().to_pylist()
        except (pa.ArrowException, OSError) as error:
            # Arrow reports a page whose checksum does not fit as an OSError without a number; one with it is the store's.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            message = f"{path}: cannot be read ({error}); materialise the manifest with `again`"
            raise ValueError(message) from error
