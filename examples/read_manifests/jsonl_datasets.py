"""Read a manifest's JSON lines with Hugging Face datasets.

    python examples/read_manifests/jsonl_datasets.py data/web/opt-125m/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `jsonl`: the source's own lines of the kept items.
"""

import argparse

import datasets

from semdedup_assets import read_manifest


def main() -> None:
    """Stream every kept line, print the first and how many there are."""
    parser = argparse.ArgumentParser(description="Read a manifest's JSON lines.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds jsonl/*.jsonl.gz")
    files = read_manifest(parser.parse_args().manifest).files("jsonl")
    rows = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    items = 0
    for row in rows:
        if items == 0:
            print(f"first: {row}")
        items += 1
    print(f"{items} items")


if __name__ == "__main__":
    main()
