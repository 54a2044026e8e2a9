"""Apply a manifest to a table of your own: drop the rows that it lists as removed, by an anti-join with Polars.

    python examples/read_manifests/anti_join_polars.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/current.json \
        photos.parquet --key url

The manifest must hold the format `removed`, which lists each removed item with its id, its key, and the group, key
and similarity of the kept item that stands for it. Any tool that joins can do the same; NeMo Curator's removal stage, for
one, asks for a column `id`.
"""

import argparse
from pathlib import Path

import polars as pl

from semdedup_assets import read_manifest


def main() -> None:
    """Print how many rows stay, or write them."""
    parser = argparse.ArgumentParser(description="Drop what a manifest removes from Parquet tables.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds removed/*.parquet")
    parser.add_argument("tables", help="the tables, a path or glob")
    parser.add_argument("--key", help="column with the items' keys; without it, the tables must have the column `id`")
    parser.add_argument("--out", type=Path, help="where to write the rows that stay, as Parquet")
    arguments = parser.parse_args()

    by = "key" if arguments.key else "id"
    removed = pl.scan_parquet(read_manifest(arguments.manifest).files("removed")).select(by)
    stay = pl.scan_parquet(arguments.tables).join(removed, left_on=arguments.key or by, right_on=by, how="anti")
    if arguments.out is not None:
        stay.sink_parquet(arguments.out)
    print(f"{stay.select(pl.len()).collect().item()} rows stay")


if __name__ == "__main__":
    main()
