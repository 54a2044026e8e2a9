"""Retrieval and zero-shot classification, against embeddings and rankings that are made otherwise."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from semdedup_assets.sources import TruncatedFile
from semdedup_assets.training.metrics.retrieval import DEPTHS, recalls, retrieval
from semdedup_assets.training.metrics.zero_shot import zero_shot
from semdedup_assets.training_settings import ZeroShot
from semdedup_assets_tests.training.emoji import emoji, tiny_clip

SAMPLES = [members | {"key": f"{number:04d}".encode()} for number, members in enumerate(emoji(40))]


def write_tar(path: Path, samples: Iterable[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for suffix in sample.keys() - {"key", "json"}:
                member = tarfile.TarInfo(f"{sample['key'].decode()}.{suffix}")
                member.size = len(sample[suffix])
                tar.addfile(member, io.BytesIO(sample[suffix]))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP: its rankings are as arbitrary as can be."""
    folder = tiny_clip(tmp_path_factory.mktemp("models") / "clip")
    torch.manual_seed(3)
    made = open_clip.CLIP(**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
    # Statistics of its own, for those that it starts with would make all images nearly the same.
    made.train()(image_pixels(SAMPLES), open_clip.get_tokenizer(f"local-dir:{folder}")(["a", "b"] * 20))
    save_file({name: each.clone() for name, each in made.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def image_pixels(samples: list[dict[str, bytes]]) -> torch.Tensor:
    transform = open_clip.image_transform(32, is_train=False, interpolation="bicubic")
    pictures = []
    for sample in samples:
        drawing = Image.open(io.BytesIO(sample["png"])).convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        white.alpha_composite(drawing)
        pictures.append(transform(white.convert("RGB")))
    return torch.stack(pictures)


def oracle_vectors(model: Path, samples: list[dict[str, bytes]], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    clip, _ = open_clip.create_model_from_pretrained(f"local-dir:{model}")
    tokens = open_clip.get_tokenizer(f"local-dir:{model}")(texts)
    with torch.inference_mode():
        images = clip.eval().encode_image(image_pixels(samples), normalize=True)
        return images.numpy(), clip.encode_text(tokens, normalize=True).numpy()


def ranked(similarity: np.ndarray, right: list[set[int]], depth: int) -> float:
    """Share of queries of which a right one is among the first, by sorting each row."""
    orders = [sorted(range(len(row)), key=lambda at, row=row: -row[at])[:depth] for row in similarity]
    return float(np.mean([bool(wanted & set(order)) for wanted, order in zip(right, orders, strict=True)]))


def test_recall_is_that_of_embeddings_made_by_openclip_alone(tmp_path: Path, model: Path) -> None:
    """Two samples share a caption but for white space; others lack a caption, an image, or are damaged."""
    samples = [*SAMPLES[:30], {**SAMPLES[30], "txt": b"  " + SAMPLES[2]["txt"].replace(b" ", b"\n ")}]
    bad = [
        {"key": b"without a caption", "png": SAMPLES[31]["png"]},
        {"key": b"without an image", "txt": b"a car"},
        {"key": b"damaged", "png": SAMPLES[32]["png"][:99], "txt": b"a dog"},
    ]
    write_tar(tmp_path / "0.tar", [*samples[:11], *bad])
    write_tar(tmp_path / "1.tar", samples[11:])
    measured = retrieval(model, str(tmp_path), device="cpu", batch_size=7)
    assert measured.items == 31
    assert dict(measured.skipped).keys() == {"without a caption", "without an image", "damaged"}
    assert dict(measured.skipped)["without a caption"] == "no caption"

    captions = [" ".join(sample["txt"].decode().split()) for sample in samples]
    texts = sorted(set(captions))
    images, of_texts = oracle_vectors(model, samples, texts)
    similarity = images @ of_texts.T
    for depth in DEPTHS:
        of_images = [{texts.index(caption)} for caption in captions]
        assert measured.values[f"image_to_text_recall@{depth}"] == ranked(similarity, of_images, depth)
        with_text = [{at for at, caption in enumerate(captions) if caption == text} for text in texts]
        assert measured.values[f"text_to_image_recall@{depth}"] == ranked(similarity.T, with_text, depth)
    assert 0 < measured.values["text_to_image_recall@10"] < 1


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 12))
def test_recall_grows_with_depth_and_is_that_of_sorting(seed: int, images: int, texts: int) -> None:
    rng = np.random.default_rng(seed)
    text_of = np.concatenate([np.arange(texts), rng.integers(0, texts, images)])
    vectors = rng.standard_normal((len(text_of), 5)).astype(np.float32)
    sentences = rng.standard_normal((texts, 5)).astype(np.float32)
    found = recalls(vectors, sentences, text_of)
    for depth in DEPTHS:
        assert found[f"image_to_text_recall@{depth}"] == ranked(
            vectors @ sentences.T, [{each} for each in text_of], depth
        )
        with_text = [set(np.flatnonzero(text_of == text).tolist()) for text in range(texts)]
        assert found[f"text_to_image_recall@{depth}"] == ranked(sentences @ vectors.T, with_text, depth)


def test_a_model_that_gives_everything_one_vector_finds_nothing() -> None:
    same = np.ones((20, 4), np.float32) / 2
    assert set(recalls(same, same, np.arange(20)).values()) == {0.0}


def test_accuracy_is_that_of_embeddings_made_by_openclip_alone(tmp_path: Path, model: Path) -> None:
    names = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("car", "dog", "face")]
    classes = [int(members["key"]) * 5 % len(names) for members in SAMPLES]
    images, texts = oracle_vectors(model, SAMPLES, [f"an emoji of {name}." for name in names])
    by_position = [{**each, "cls": str(at).encode()} for each, at in zip(SAMPLES, classes, strict=True)]
    by_name = [{**each, "txt": names[at].encode()} for each, at in zip(SAMPLES, classes, strict=True)]
    for number, (samples, given_classes) in enumerate(((by_position, names), (by_name, names), (by_name, []))):
        path = write_tar(tmp_path / f"{number}.tar", samples)
        asked = ZeroShot(path=str(path), classes=tuple(given_classes), template="an emoji of {}.")
        measured = zero_shot(model, asked, device="cpu")
        assert measured.items == len(SAMPLES)
        assert measured.skipped == []
        assert measured.values == {
            f"accuracy@{depth}": ranked(images @ texts.T, [{at} for at in classes], depth) for depth in (1, 5)
        }


def test_five_classes_are_not_measured_at_five(tmp_path: Path, model: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [{**each, "cls": b"1"} for each in SAMPLES[:3]])
    measured = zero_shot(model, ZeroShot(path=str(path), classes=tuple("abcde")), device="cpu")
    assert measured.values.keys() == {"accuracy@1"}


# Bad input


def test_sets_that_cannot_be_measured_are_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        retrieval(model, str(tmp_path / "nowhere"), device="cpu")
    path = write_tar(tmp_path / "0.tar", [{"key": b"a", "png": SAMPLES[0]["png"]}])
    with pytest.raises(ValueError, match=r"evaluation.retrieval: .*0.tar: none of its 1 samples .*'a' \(no caption\)"):
        retrieval(model, str(path), device="cpu")
    with pytest.raises(ValueError, match=r"evaluation.zero_shot: .*0.tar: none of its 1 samples .*'a' \(no class"):
        zero_shot(model, ZeroShot(path=str(path), classes=("car",)), device="cpu")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(write_tar(tmp_path / "whole.tar", SAMPLES[:9]).read_bytes()[:9000])
    with pytest.raises(TruncatedFile, match=r"cut\.tar: cut off"):
        retrieval(model, str(cut), device="cpu")


@pytest.mark.parametrize(
    ("sample", "classes", "message"),
    [
        ({"cls": b"3"}, ("car", "dog"), "'a' has the class '3', which is not among the 2 of `classes`"),
        ({"txt": b"cat"}, ("car", "dog"), "'a' has the class 'cat', which is not among the 2 of `classes`"),
        ({"cls": b"3"}, (), "'a' has the class 3 and no txt; name the classes in `classes`"),
    ],
)
def test_an_unknown_class_is_named(
    tmp_path: Path, model: Path, sample: dict[str, bytes], classes: tuple[str, ...], message: str
) -> None:
    path = write_tar(tmp_path / "0.tar", [{"key": b"a", "png": SAMPLES[0]["png"], **sample}])
    with pytest.raises(ValueError, match=message):
        zero_shot(model, ZeroShot(path=str(path), classes=classes), device="cpu")


def test_a_folder_without_a_model_is_named(tmp_path: Path, model: Path) -> None:
    path = str(write_tar(tmp_path / "0.tar", SAMPLES[:2]))
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder"):
        retrieval(tmp_path / "nowhere", path, device="cpu")
    shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match=r"/bare, its own weights: the weights cannot be loaded"):
        retrieval(tmp_path / "bare", path, device="cpu")
    with pytest.raises(ValueError, match=r"device 'cuda:77' cannot be used"):
        retrieval(model, path, device="cuda:77")
