"""Read the source's own vectors, with the kept ones only, with NumPy: of the type and scale that the source has.

    python examples/read_manifests/filtered_vectors.py data/laion/precomputed/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `filtered`: the files of a source of kind `vectors` under their own names. Tables that belong
to `.npy` and `.npz` files lie beside them with the same rows, as clip-retrieval has them (`img_emb/`, `metadata/`); vectors
that are a column of tables are read as filtered_tables.py does.
"""

import argparse

import numpy as np

from semdedup_assets import read_manifest


def main() -> None:
    """Print how many vectors each file holds, and how many there are."""
    parser = argparse.ArgumentParser(description="Read the source's own vectors with the kept ones only.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds filtered/")
    files = read_manifest(parser.parse_args().manifest).files("filtered")
    arrays = {file: vectors_of(file) for file in files if file.lower().endswith((".npy", ".npz"))}
    for file, vectors in arrays.items():
        print(f"{file}: {len(vectors)} × {vectors.shape[1]} {vectors.dtype}")
    if not arrays:
        print("no arrays: the vectors are a column of tables, which filtered_tables.py reads")
        return
    print(f"{sum(map(len, arrays.values()))} vectors of {next(iter(arrays.values())).shape[1]} numbers")


def vectors_of(file: str) -> np.ndarray:
    """The array of an .npy file, or the one of two dimensions in an .npz file."""
    if file.lower().endswith(".npy"):
        return np.load(file, mmap_mode="r")
    with np.load(file) as archive:
        return next(array for array in archive.values() if array.ndim == 2 and array.dtype.kind == "f")


if __name__ == "__main__":
    main()
