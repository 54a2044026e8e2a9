"""Read a manifest with OpenCLIP's own WebDataset loader.

    python examples/read_manifests/open_clip_webdataset.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/<version>

The folder must hold the format `webdataset`: tars with the kept samples alone. In training the same is
`--dataset-type webdataset --train-data '<folder>/webdataset/s{000000..000099}.tar' --train-num-samples <items>`.
OpenCLIP passes over samples without a caption.
"""

import argparse
from pathlib import Path

import open_clip
from open_clip_train.data import get_wds_dataset


def main() -> None:
    """Load every kept image with its caption, and print how many there are."""
    parser = argparse.ArgumentParser(description="Read a manifest with OpenCLIP's WebDataset loader.")
    parser.add_argument("folder", type=Path, help="folder of one manifest, which holds webdataset/*.tar")
    parser.add_argument("--model", default="ViT-B-16", help="whose tokenizer and image size to use")
    chosen = parser.parse_args()
    size = open_clip.get_model_config(chosen.model)["vision_cfg"]["image_size"]
    tars = [str(path) for path in sorted((chosen.folder / "webdataset").glob("*.tar"))]
    # The settings that OpenCLIP's command line would set; as for its evaluation, so that each item comes once.
    settings = argparse.Namespace(val_data=tars, val_num_samples=None, batch_size=64, workers=0, world_size=1)
    data = get_wds_dataset(
        settings,
        open_clip.image_transform(size, is_train=False),
        is_train=False,
        tokenizer=open_clip.get_tokenizer(chosen.model),
    )
    items = 0
    for images, tokens in data.dataloader:
        if items == 0:
            print(f"first batch: images {tuple(images.shape)}, tokens {len(tokens)} × {tuple(tokens[0].shape)}")
        items += len(images)
    print(f"{items} items")


if __name__ == "__main__":
    main()
