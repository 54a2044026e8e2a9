"""Read a manifest's Parquet files with Polars and with Hugging Face datasets.

    python examples/read_manifests/parquet_polars.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `parquet`: for each kept item its id, shard, row, file, row in the file, key and the
columns carried along, in the order of the source.
"""

import argparse

import datasets
import polars as pl

from semdedup_assets import read_manifest


def main() -> None:
    """Print the kept items by shard, and the first of them."""
    parser = argparse.ArgumentParser(description="Read a manifest's Parquet files.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds parquet/*.parquet")
    files = read_manifest(parser.parse_args().manifest).files("parquet")
    kept = pl.scan_parquet(files)
    print(kept.group_by("shard").len("items").sort("shard").collect())
    print(kept.select("file", "file_row", "key").head(3).collect())
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    items = kept.select(pl.len()).collect().item()
    if sum(1 for _ in rows) != items:
        message = f"Polars reads {items} items, datasets another number"
        raise SystemExit(message)
    print(f"{items} items")


if __name__ == "__main__":
    main()
