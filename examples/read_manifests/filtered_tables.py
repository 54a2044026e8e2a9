"""Read the source's own tables, with the kept rows only, with PyArrow's datasets and with Hugging Face datasets.

    python examples/read_manifests/filtered_tables.py data/web/opt-125m/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `filtered`: the files of a source of kind `parquet` under their own names and folders,
with every column. A program that reads the source needs another path, and nothing else.
"""

import argparse

import datasets
import pyarrow.dataset as ds

from semdedup_assets import read_manifest


def main() -> None:
    """Print the columns, and how many rows there are."""
    parser = argparse.ArgumentParser(description="Read the source's own tables with the kept rows only.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds filtered/")
    files = read_manifest(parser.parse_args().manifest).files("filtered")
    files = [file for file in files if not file.lower().endswith((".npy", ".npz"))]
    for file in files:
        table = ds.dataset(file, format="parquet")
        print(f"{file}: {table.count_rows()} rows of {', '.join(table.schema.names)}")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    print(f"{sum(1 for _ in rows)} rows")


if __name__ == "__main__":
    main()
