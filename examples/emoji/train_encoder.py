"""Train the demo's encoder: a small CLIP on four fifths of the emoji figures, in some minutes on 2 CPU cores.

    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0 --pack-destination packages
    python train_encoder.py --packages packages

Each step draws concepts, with both vendors' drawings of each and its name, and lowers three contrastive losses:
drawing against name for either vendor, as in CLIP, and drawing against drawing. What is saved is the moving average
of the weights, in float16, as a checkpoint that OpenCLIP loads as `local-dir:examples/emoji/encoder`.
A run may be stopped at any time: the checkpoint is written anew every 100 steps. The seed fixes the order and the
augmentation; the number of threads still changes the last digits.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import tokenizers
import torch
from drawings import SIZE, VENDORS, Drawing, held_out_bases, open_png, read_drawings
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional

CONTEXT_LENGTH = 24  # tokens; the longest caption has 23
VOCABULARY = 1024
HIGHEST_SCALE = 50.0  # of the logits; CLIP's limit of 100 is for batches a hundred times larger
LABEL_SMOOTHING = 0.05
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 2, 2, 1], "width": 20, "head_width": 64},
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY,
        # OpenCLIP reads the tokenizer's files from the checkpoint's own folder, whatever name stands here.
        "hf_tokenizer_name": "emoji-captions",
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
}
PREPROCESSING: dict[str, Any] = {
    "size": SIZE,
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "bos_token": "<start>",
    "eos_token": "<end>",
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; the defaults made the shipped checkpoint."""

    steps: int = 2200  # that the learning rate's schedule is long
    stop: int = 860  # steps that are made of them; `steps` for the whole schedule
    batch: int = 128  # concepts, so twice as many drawings
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup: int = 150  # steps
    average: float = 0.995  # decay of the moving average of the weights
    seed: int = 0


@dataclass(frozen=True)
class Concepts:
    """The training set, one row per concept.

    `drawings` (n, 2, 4, 64, 64) uint8 RGBA, in the order of VENDORS; `tokens` (n, 24) int64; `weight` (n,) float64,
    the chance to be drawn: a figure of six skin tones comes up 2.4 times, not 6 times, as often as a figure of one.
    """

    drawings: Tensor
    tokens: Tensor
    weight: np.ndarray[Any, np.dtype[np.float64]]


def caption_tokenizer(captions: Sequence[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE of the captions' own words; the end token has the highest id, where CLIP looks for it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=["<pad>", "<start>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens(["<end>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer.enable_truncation(CONTEXT_LENGTH)
    tokenizer.enable_padding(length=CONTEXT_LENGTH, pad_token="<pad>", pad_id=tokenizer.token_to_id("<pad>"))
    return tokenizer


def training_concepts(drawings: Sequence[Drawing], tokenizer: tokenizers.Tokenizer) -> Concepts:
    """The drawings paired by concept, as tensors."""
    of_concept: dict[str, dict[str, Drawing]] = {}
    for drawing in drawings:
        of_concept.setdefault(drawing.concept, {})[drawing.vendor] = drawing
    pairs = [[of_concept[concept][vendor] for vendor in VENDORS] for concept in sorted(of_concept)]
    pixels = np.stack([[np.asarray(open_png(drawing.png)) for drawing in pair] for pair in pairs])  # (n, 2, 64, 64, 4)
    bases = np.array([pair[0].base for pair in pairs])
    _, position, counts = np.unique(bases, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(counts[position])
    captions = [pair[0].caption for pair in pairs]
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(captions)]
    return Concepts(
        drawings=torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous(),
        tokens=torch.tensor(tokens),
        weight=weight / weight.sum(),
    )


def augmented(rgba: Tensor) -> Tensor:
    """Drawings turned, shifted, scaled, re-coloured and put on grounds, half of them white.

    Never mirrored: a left-facing fist is not a right-facing one.

    Args:
        rgba: (b, 4, 64, 64) uint8.

    Returns:
        (b, 3, 64, 64) float32, normalised as PREPROCESSING says.
    """
    images = rgba.float() / 255
    opacity = images[:, 3:]
    layers = _moved(torch.cat([images[:, :3] * opacity, opacity], dim=1))
    ground = torch.ones(len(images), 3, 1, 1)
    coloured = torch.rand(len(images)) < 0.5
    ground[coloured] = torch.rand(int(coloured.sum()), 3, 1, 1)
    return normalised(_recoloured(layers[:, :3] + ground * (1 - layers[:, 3:])).clamp(0, 1))


def normalised(rgb: Tensor) -> Tensor:
    """(b, 3, 64, 64) of values in 0 … 1, less the mean and over the deviation that OpenCLIP's transform uses."""
    mean, std = (torch.tensor(PREPROCESSING[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return ((rgb - mean) / std).contiguous(memory_format=torch.channels_last)


def train(concepts: Concepts, recipe: Recipe) -> Iterator[tuple[int, float, open_clip.CLIP]]:
    """Train from random weights.

    Yields:
        after each step its number, its loss, and the moving average of the weights in evaluation mode.
    """
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**copy.deepcopy(MODEL)).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval()
    optimiser = _optimiser(model, recipe)
    for step, rows in enumerate(_batches(concepts, recipe)):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, recipe)
        loss = _loss(model, concepts.drawings[rows], concepts.tokens[rows])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(HIGHEST_SCALE))
        _follow(average, model, decay=min(recipe.average, (step + 1) / (step + 20)))
        yield step + 1, loss.item(), average


def train_and_save(concepts: Concepts, recipe: Recipe, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Train, and every 100 steps and at the end print the mean loss and write the checkpoint."""
    started = time.monotonic()
    losses = []
    for step, loss, average in train(concepts, recipe):
        losses.append(loss)
        if step % 100 == 0 or step == recipe.stop:
            save(average, tokenizer, folder)
            print(f"step {step:5d}  loss {np.mean(losses[-100:]):.3f}  {time.monotonic() - started:5.0f} s", flush=True)


def save(model: open_clip.CLIP, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write the checkpoint that OpenCLIP loads as `local-dir:<folder>`, its weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")


def _moved(layers: Tensor) -> Tensor:
    """Each image turned by up to 13 degrees, scaled by 0.87 to 1.33, shifted by up to an eighth."""
    count = len(layers)
    angle = (torch.rand(count) - 0.5) * 0.45
    scale = torch.rand(count) * 0.4 + 0.75
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale * angle.cos()
    affine[:, 1, 0] = scale * angle.sin()
    affine[:, 0, 1] = -affine[:, 1, 0]
    affine[:, :, 2] = (torch.rand(count, 2) - 0.5) * 0.25
    grid = functional.affine_grid(affine, list(layers.shape), align_corners=False)
    return functional.grid_sample(layers, grid, align_corners=False)


def _recoloured(rgb: Tensor) -> Tensor:
    """Each image with its own brightness, contrast, saturation and tint."""
    count = len(rgb)

    def factor(spread: float, channels: int = 1) -> Tensor:
        return 1 + (torch.rand(count, channels, 1, 1) - 0.5) * spread

    rgb = rgb * factor(0.5) * factor(0.2, channels=3)
    mean = rgb.mean((2, 3), keepdim=True)
    rgb = mean + (rgb - mean) * factor(0.6)
    grey = rgb.mean(1, keepdim=True)
    return grey + (rgb - grey) * factor(0.6)


def _batches(concepts: Concepts, recipe: Recipe) -> Iterator[Tensor]:
    """Rows of distinct concepts for every step."""
    random = np.random.default_rng(recipe.seed)
    for _ in range(recipe.stop):
        rows = random.choice(len(concepts.weight), recipe.batch, replace=False, p=concepts.weight)
        yield torch.from_numpy(rows)


def _optimiser(model: open_clip.CLIP, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warm * (0.5 * (1 + math.cos(math.pi * step / recipe.steps)) + 0.01)


def _loss(model: open_clip.CLIP, drawings: Tensor, tokens: Tensor) -> Tensor:
    """Name against either drawing, and drawing against drawing.

    Args:
        model: in training mode.
        drawings: (b, 2, 4, 64, 64) uint8.
        tokens: (b, 24) int64.
    """
    with torch.autocast("cpu", torch.bfloat16):
        images = model.encode_image(augmented(drawings.flatten(0, 1)), normalize=True)
    first, second = images.float().unflatten(0, (-1, 2)).unbind(1)  # (b, d) each
    names = model.encode_text(tokens, normalize=True)  # (b, d)
    scale = model.logit_scale.exp()
    with_names = (_contrastive(first, names, scale) + _contrastive(second, names, scale)) / 2
    return with_names + _contrastive(first, second, scale)


def _contrastive(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss of (b, d) unit rows against (b, d) unit rows, in both directions."""
    logits = scale * left @ right.T  # (b, b)
    target = torch.arange(len(left))
    there = functional.cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
    back = functional.cross_entropy(logits.T, target, label_smoothing=LABEL_SMOOTHING)
    return (there + back) / 2


@torch.no_grad()
def _follow(average: open_clip.CLIP, model: open_clip.CLIP, *, decay: float) -> None:
    for mean, latest in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(latest, 1 - decay)
        else:
            mean.copy_(latest)


def main() -> None:
    """Read the packages, train on the figures that are not held out, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the two .tgz files of `npm pack`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "encoder")
    parser.add_argument("--stop", type=int, default=Recipe.stop, help=f"last step, of at most {Recipe.steps}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    drawings = read_drawings(options.packages)
    held_out = held_out_bases(drawings)
    seen = [drawing for drawing in drawings if drawing.base not in held_out]
    tokenizer = caption_tokenizer([drawing.caption for drawing in seen])
    concepts = training_concepts(seen, tokenizer)
    print(f"{len(seen)} drawings of {len(concepts.weight)} concepts; {len(held_out)} figures held out", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "held_out.json").write_text(json.dumps(sorted(held_out), indent=0) + "\n")
    train_and_save(concepts, Recipe(stop=min(options.stop, Recipe.steps)), tokenizer, options.out)


if __name__ == "__main__":
    main()
