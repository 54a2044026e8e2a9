"""Look through what a manifest removes, with PyArrow's datasets: how much, and the least alike pairs.

    python examples/read_manifests/removed_pyarrow.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `removed`: for each removed item its file, row and key, and those of the kept item that
stands for it. The pairs that are least alike are the ones to look at before epsilon is chosen.
"""

import argparse

import pyarrow.compute as pc
import pyarrow.dataset as ds

from semdedup_assets import read_manifest


def main() -> None:
    """Print how many items were removed, how many of them are orphans, and the pairs that are least alike."""
    parser = argparse.ArgumentParser(description="Look through what a manifest removes.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds removed/*.parquet")
    parser.add_argument("--pairs", type=int, default=10, help="how many pairs are printed")
    arguments = parser.parse_args()

    removed = ds.dataset(read_manifest(arguments.manifest).files("removed"), format="parquet")
    orphans = removed.count_rows(filter=pc.field("is_orphan"))
    print(f"{removed.count_rows()} items removed, {orphans} of them orphans")
    columns = ["similarity", "key", "file", "file_row", "kept_key", "kept_file", "kept_file_row"]
    pairs = removed.to_table(columns).sort_by("similarity").slice(length=arguments.pairs)
    for pair in pairs.to_pylist():
        print(pair)


if __name__ == "__main__":
    main()
