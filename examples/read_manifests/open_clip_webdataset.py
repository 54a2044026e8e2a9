"""Read a manifest with OpenCLIP's own WebDataset loader, once as for evaluation and a batch as for training.

    python examples/read_manifests/open_clip_webdataset.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `webdataset`: tars with the kept samples alone. To train on them:

    python -m open_clip_train.main --model ViT-B-16 --dataset-type webdataset --train-data '<folder>/webdataset/s{000000..000099}.tar' --train-num-samples <items> --workers 4

OpenCLIP passes over samples without a caption. Its loader needs webdataset before 0.2.96, with which
`pip install 'semdedup-assets[training]'` installs it; later ones end the training with `KeyError: 'fname'`.
"""

import argparse
from typing import Any

import open_clip
from open_clip_train.data import get_wds_dataset

from semdedup_assets import read_manifest


def load(tars: list[str], model: str, *, items: int | None) -> Any:
    """The batches that OpenCLIP's program would read.

    Args:
        tars: of the manifest.
        model: whose tokenizer and image size are used.
        items: samples of an epoch of training; None: each item once, as for evaluation.
    """
    is_train = items is not None
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    # What OpenCLIP's command line would set.
    settings = argparse.Namespace(
        train_data=tars,
        train_num_samples=items,
        train_data_upsampling_factors=None,
        val_data=tars,
        val_num_samples=None,
        batch_size=min(64, items) if items else 64,
        workers=0,
        world_size=1,
        seed=0,
    )
    transform = open_clip.image_transform(size, is_train=is_train)
    return get_wds_dataset(settings, transform, is_train=is_train, tokenizer=open_clip.get_tokenizer(model)).dataloader


def main() -> None:
    """Load every kept image with its caption, print how many there are, and load a batch of a training."""
    parser = argparse.ArgumentParser(description="Read a manifest with OpenCLIP's WebDataset loader.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds webdataset/*.tar")
    parser.add_argument("--model", default="ViT-B-16", help="whose tokenizer and image size to use")
    chosen = parser.parse_args()
    tars = read_manifest(chosen.manifest).files("webdataset")
    items = 0
    for images, tokens in load(tars, chosen.model, items=None):
        if items == 0:
            print(f"first batch: images {tuple(images.shape)}, tokens {len(tokens)} × {tuple(tokens[0].shape)}")
        items += len(images)
    print(f"{items} items")
    images, _ = next(iter(load(tars, chosen.model, items=items)))
    print(f"a batch of training: images {tuple(images.shape)}")


if __name__ == "__main__":
    main()
