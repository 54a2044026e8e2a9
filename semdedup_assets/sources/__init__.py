"""What a dataset is read from: every kind of source is one file and one member of `Source`."""

from typing import Annotated

from pydantic import Field

from semdedup_assets.sources.folder import Folder
from semdedup_assets.sources.jsonl import JsonLines
from semdedup_assets.sources.parquet import Parquet
from semdedup_assets.sources.reading import TruncatedFile
from semdedup_assets.sources.shard_index import Shard, ShardIndex
from semdedup_assets.sources.vectors import Vectors
from semdedup_assets.sources.webdataset import WebDataset

Source = Annotated[Folder | WebDataset | Parquet | JsonLines | Vectors, Field(discriminator="kind")]

__all__ = [
    "Folder",
    "JsonLines",
    "Parquet",
    "Shard",
    "ShardIndex",
    "Source",
    "TruncatedFile",
    "Vectors",
    "WebDataset",
]
