"""Read a manifest with OpenCLIP's own CSV loader.

    python examples/read_manifests/open_clip_csv.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `csv`, whose columns and separator are OpenCLIP's defaults. To train on it:

    python -m open_clip_train.main --model ViT-B-16 --dataset-type csv --train-data '<folder>/open_clip.csv' --workers 4

An epoch is a pass over the table without its last partial batch; OpenCLIP ignores `--train-num-samples` here.
"""

import argparse

import open_clip
from open_clip_train.data import CsvDataset

from semdedup_assets import read_manifest


def main() -> None:
    """Load every kept image with its caption, and print how many there are."""
    parser = argparse.ArgumentParser(description="Read a manifest with OpenCLIP's CSV loader.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds open_clip.csv")
    parser.add_argument("--model", default="ViT-B-16", help="whose tokenizer and image size to use")
    chosen = parser.parse_args()
    (table,) = read_manifest(chosen.manifest).files("open_clip.csv")
    size = open_clip.get_model_config(chosen.model)["vision_cfg"]["image_size"]
    dataset = CsvDataset(
        table,
        open_clip.image_transform(size, is_train=False),
        img_key="filepath",
        caption_key="title",
        tokenizer=open_clip.get_tokenizer(chosen.model),
    )
    for index in range(len(dataset)):
        image, tokens = dataset[index]
        if index == 0:
            print(f"first: image {tuple(image.shape)}, tokens {tuple(tokens.shape)}, {dataset.captions[0]!r}")
    print(f"{len(dataset)} items")


if __name__ == "__main__":
    main()
