"""Find a manifest and its files: for training jobs and for whoever looks through it."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from semdedup_assets.storage.files import join, list_folder, open_file, read_many
from semdedup_assets.storage.layout import CURRENT, current_manifest

if TYPE_CHECKING:
    import polars as pl

MANIFEST = "manifest.json"
"""What a manifest holds and was made from, in its folder."""

_EMPTY = {"id": "UInt64", "key": "String", "kept": "Boolean", "kept_key": "String", "similarity": "Float32"}


@dataclass(frozen=True)
class Manifest:
    """One manifest, where it lies.

    Attributes:
        folder: local path or URL.
        details: what its `manifest.json` holds.
    """

    folder: str
    details: dict[str, Any]

    @property
    def version(self) -> str:
        """Name of its folder."""
        return str(self.details["manifest"])

    @property
    def made_with(self) -> dict[str, Any]:
        """The settings and the data that it goes back to."""
        return dict(self.details["made_with"])

    def files(self, kind: str) -> list[str]:
        """The files of a format, in the order of the source.

        Args:
            kind: a folder of the manifest, such as `parquet`, `removed` or `webdataset`; or a file, `open_clip.csv`.

        Returns:
            Local paths or URLs.

        Raises:
            FileNotFoundError: the manifest does not hold that; names what it holds.
        """
        # Tables that belong to arrays are counted apart, and lie among the filtered files.
        there = sorted(set(self.details["rows_written"]) - {"filtered_metadata"})
        if kind not in there:
            message = f"{self.folder}: it holds {', '.join(there)}, and not {kind}; add the format to `manifests`"
            raise FileNotFoundError(message)
        return sorted(list_folder(join(self.folder, kind), recursive=True)) or [join(self.folder, kind)]

    @cached_property
    def shards(self) -> list[str]:
        """Names of the shards that it has tables of."""
        names = (path.rpartition("/")[2] for path in list_folder(join(self.folder, "parquet")))
        return sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))

    def rows(self, shard: str) -> "pl.DataFrame":
        """The kept and the removed items of a shard; none of a shard that it has not.

        Returns:
            id, key, kept; of the removed ones kept_key and similarity.
        """
        import polars as pl

        empty = pl.DataFrame(schema={name: getattr(pl, kind) for name, kind in _EMPTY.items()})
        if shard not in self.shards:
            return empty
        kept = self._table("parquet", shard, ["id", "key"]).with_columns(kept=pl.lit(value=True))
        removed = self._table("removed", shard, ["id", "key", "kept_key", "similarity"])
        return pl.concat([empty, kept, removed.with_columns(kept=pl.lit(value=False))], how="diagonal")

    def _table(self, kind: str, shard: str, columns: list[str]) -> "pl.DataFrame":
        import polars as pl
        import pyarrow.parquet as pq

        with open_file(join(self.folder, kind, f"{shard}.parquet")) as stream:
            return pl.DataFrame(pq.ParquetFile(stream).read(columns))


def read_manifest(path: str) -> Manifest:
    """Find a manifest.

    Args:
        path: `current.json`, the folder it lies in, of whose manifests it names one, or the folder of a manifest; local or
            an fsspec URL.

    Raises:
        FileNotFoundError: there is none; names what was looked for.

    Example:
        `read_manifest("…/k=100/hard/epsilon=0.05/manifests/current.json").files("parquet")`
    """
    whole = str(path).rstrip("/")
    folder = "." if whole == CURRENT else whole.removesuffix(f"/{CURRENT}")
    (pointer,) = read_many([current_manifest(folder)])
    folder = folder if pointer is None else join(folder, json.loads(pointer)["folder"])
    (content,) = read_many([join(folder, MANIFEST)])
    if content is None:
        message = f"{folder}: there is no {MANIFEST} in it, nor {CURRENT} in {path}; materialise the manifest"
        raise FileNotFoundError(message)
    return Manifest(folder, json.loads(content))
