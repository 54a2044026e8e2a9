import json
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import OpenClip
from semdedup_assets.encoders.image_tower import ImageTower
from semdedup_assets.records import Embedded, Invalid, Record
from semdedup_assets_tests.encoders.picture_files import encoded, png_of_size

CPU = Compute(device="cpu")
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
}


def new_model() -> Any:
    import torch
    from open_clip import CLIP

    torch.manual_seed(0)
    return CLIP(**CONFIG).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OpenCLIP model with random weights, in OpenCLIP's own folder format."""
    from safetensors.torch import save_model

    path = tmp_path_factory.mktemp("model") / "tiny-clip"
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    save_model(new_model(), str(path / "open_clip_model.safetensors"))
    return path


@pytest.fixture(scope="module")
def tower(folder: Path) -> ImageTower:
    return OpenClip(model=str(folder), precision="float32").load(CPU)


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (80, 60)) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(value) for value in rng.integers(0, 256, 3)))
    for _ in range(6):
        corners = np.sort(rng.integers(0, min(size), (2, 2)), axis=0).ravel().tolist()
        ImageDraw.Draw(image).rectangle(corners, fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return image.convert(mode)


def records(count: int) -> list[Record]:
    return [Record(f"image {seed}", encoded(picture(seed))) for seed in range(count)]


def together(batches: list[Embedded]) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in batches])


def embed_one(tower: ImageTower, image: Image.Image) -> np.ndarray:
    (batch,) = tower.embed([Record("one", encoded(image))])
    assert not batch.skipped
    return batch.vectors[0]


def test_vectors_are_open_clips_own_normalised_features(tower: ImageTower, folder: Path) -> None:
    import open_clip
    import torch

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        expected = [model.eval().encode_image(preprocess(picture(seed))[None], normalize=True)[0] for seed in range(5)]
    vectors = together(list(tower.embed(records(5))))
    np.testing.assert_allclose(vectors, torch.stack(expected).numpy(), atol=1e-5)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, tower.dimension)


def test_only_the_image_tower_is_kept(tower: ImageTower) -> None:
    whole = sum(weight.numel() for weight in new_model().parameters())
    visual = sum(weight.numel() for weight in new_model().visual.parameters())
    assert sum(weight.numel() for weight in tower.visual.parameters()) == visual < whole


def test_batch_size_and_workers_change_no_vector_and_no_order(folder: Path) -> None:
    stream: list[Record | Invalid] = [*records(23)]
    stream.insert(4, Invalid("lost", "missing in the tar"))
    stream.insert(9, Record("bad", b"not an image"))
    results = []
    for batch_size, workers in ((1, 1), (4, 3), (64, 2)):
        compute = Compute(device="cpu", batch_size=batch_size, decoding_threads=workers)
        batches = list(OpenClip(model=str(folder), precision="float32").load(compute).embed(stream))
        results.append(together(batches))
        assert [row for batch in batches for row in batch.rows] == [row for row in range(25) if row not in (4, 9)]
        assert [key for batch in batches for key in batch.keys] == [f"image {seed}" for seed in range(23)]
        assert [(item.row, item.key) for batch in batches for item in batch.skipped] == [(4, "lost"), (9, "bad")]
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    np.testing.assert_allclose(results[0], results[2], atol=1e-5)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty image file"),
        (b"<html>404</html>", "not an image in a known format"),
        (encoded(picture(1), "JPEG")[:700], "image cannot be decoded: .*truncated"),
        (encoded(picture(1))[:200], "image cannot be decoded"),
        (png_of_size(20_000, 20_000), "more pixels than `max_pixels`, 100000000 .*400000000"),
        (encoded(Image.new("L", (1, 60_000))), "1 x 60000 pixels is too elongated"),
        ("text", "str, not an encoded image"),
    ],
)
def test_an_image_that_cannot_be_embedded_is_skipped_with_its_reason(
    tower: ImageTower, payload: bytes, reason: str
) -> None:
    (batch,) = tower.embed([Record("before", encoded(picture(0))), Record("bad", payload), *records(1)])
    assert batch.rows.tolist() == [0, 2]
    (skipped,) = batch.skipped
    assert (skipped.row, skipped.key) == (1, "bad")
    assert re.search(reason, skipped.reason)
    assert "0x" not in skipped.reason  # an address would differ in each run


def test_a_batch_without_a_good_image_is_still_reported(tower: ImageTower) -> None:
    (batch,) = tower.embed([Invalid("a", "lost"), Record("b", b"junk")])
    assert [(item.row, item.reason) for item in batch.skipped] == [(0, "lost"), (1, "not an image in a known format")]
    assert batch.vectors.shape == (0, tower.dimension)
    assert list(tower.embed([])) == []


def test_an_image_that_makes_the_model_overflow_is_skipped(folder: Path) -> None:
    import torch

    tower = OpenClip(model=str(folder), precision="float32").load(CPU)
    with torch.no_grad():
        tower.visual.proj[0, 0] = float("nan")
    (batch,) = tower.embed(records(2))
    assert [item.reason for item in batch.skipped] == ["model output: not finite"] * 2


def test_transparency_is_put_on_white(tower: ImageTower) -> None:
    drawn = picture(3)
    hole = drawn.convert("RGBA")
    hole.putalpha(Image.new("L", drawn.size, 255))
    hole.paste((255, 0, 0, 0), (10, 10, 50, 50))
    white = drawn.copy()
    white.paste((255, 255, 255), (10, 10, 50, 50))
    np.testing.assert_allclose(embed_one(tower, hole), embed_one(tower, white), atol=1e-5)
    palette = hole.quantize(64)
    assert embed_one(tower, palette) @ embed_one(tower, white) > embed_one(tower, palette) @ embed_one(tower, drawn)


def test_sixteen_bit_greys_look_as_their_eight_bit_version(tower: ImageTower) -> None:
    grey = picture(5, "L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    np.testing.assert_allclose(embed_one(tower, deep), embed_one(tower, grey), atol=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_colour_mode_is_read(tower: ImageTower, mode: str) -> None:
    image = picture(7, mode)
    (batch,) = tower.embed([Record("image", encoded(image, "TIFF"))])
    np.testing.assert_allclose(batch.vectors[0], embed_one(tower, image.convert("RGB")), atol=1e-5)


def test_a_checkpoint_file_gives_what_the_same_weights_in_a_folder_give(tmp_path: Path) -> None:
    import open_clip
    import torch

    small = {**CONFIG, "embed_dim": 24}
    (tmp_path / "tiny-test-model.json").write_text(json.dumps(small))
    open_clip.add_model_config(tmp_path / "tiny-test-model.json")
    torch.manual_seed(1)
    model = open_clip.create_model("tiny-test-model")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "epoch_3.pt")
    encoder = OpenClip(model="tiny-test-model", pretrained=str(tmp_path / "epoch_3.pt"), precision="float32")
    loaded = encoder.load(CPU)
    assert loaded.dimension == 24
    assert encoder.name == "tiny-test-model-epoch_3"
    with torch.no_grad():
        expected = model.eval().encode_image(loaded.preprocess(picture(0))[None], normalize=True)[0].numpy()
    np.testing.assert_allclose(embed_one(loaded, picture(0)), expected, atol=1e-5)
    (tmp_path / "tiny-wide.json").write_text(json.dumps({**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "width": 64}}))
    open_clip.add_model_config(tmp_path / "tiny-wide.json")
    with pytest.raises(ValueError, match=r"weights cannot be loaded.*local checkpoint file that fits the model"):
        OpenClip(model="tiny-wide", pretrained=str(tmp_path / "epoch_3.pt")).load(CPU)
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match="weights cannot be loaded"):
        OpenClip(model="tiny-test-model", pretrained=str(tmp_path / "junk.safetensors")).load(CPU)


def test_unknown_names_are_reported_with_near_ones() -> None:
    with pytest.raises(ValueError, match=r"no 'ViT-B-61'; near names: .*ViT-B-16"):
        OpenClip(model="ViT-B-61", pretrained="openai").load(CPU)
    with pytest.raises(ValueError, match=r"ViT-B-16 has no tag 'laion2b_s34b_b88'.*near tags: laion2b_s34b_b88k"):
        OpenClip(model="ViT-B-16", pretrained="laion2b_s34b_b88").load(CPU)
    with pytest.raises(ValueError, match="no such file or folder"):
        OpenClip(model="ViT-B-16", pretrained="weights/none.pt").identity()
    with pytest.raises(ValueError, match="missing for ViT-B-16; give a tag"):
        OpenClip()
    with pytest.raises(ValueError, match="remove `pretrained`"):
        OpenClip(model="hf-hub:laion/any", pretrained="openai")


def test_a_hub_out_of_reach_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be loaded.*set `pretrained` to a local checkpoint file"):
        OpenClip(model="ViT-B-16", pretrained="laion2b_s34b_b88k").load(CPU)


def test_openai_weights_get_the_activation_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import open_clip
    import torch
    from open_clip import pretrained
    from open_clip.transformer import QuickGELU

    (tmp_path / "tiny-quick.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-quick.json")
    torch.save(new_model().state_dict(), tmp_path / "weights.pt")
    tag = {"file": str(tmp_path / "weights.pt"), "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-quick", {"openai": tag})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tower = OpenClip(model="tiny-quick", pretrained="openai").load(CPU)
    assert any(isinstance(module, QuickGELU) for module in tower.visual.modules())


def test_identity_depends_on_the_weights_not_the_path(folder: Path, tmp_path: Path) -> None:
    identity = OpenClip(model=str(folder)).identity()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert OpenClip(model=f"local-dir:{moved}").identity() == identity
    assert json.loads(json.dumps(identity)) == identity
    weights = bytearray((moved / "open_clip_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "open_clip_model.safetensors").write_bytes(weights)
    assert OpenClip(model=str(moved)).identity() != identity
    assert OpenClip(model=str(folder), precision="float32").identity() != identity
    assert OpenClip(pretrained="openai").identity() != OpenClip(pretrained="laion2b_s34b_b88k").identity()


def test_the_limit_of_pixels_is_a_setting_and_decides_what_is_invalid(folder: Path) -> None:
    small = OpenClip(model=str(folder), precision="float32", max_pixels=4799)
    (batch,) = small.load(CPU).embed(
        [Record("large", encoded(picture(0))), Record("small", encoded(picture(1, size=(79, 60))))]
    )
    assert batch.keys == ["small"]
    assert [item.reason for item in batch.skipped] == ["more pixels than `max_pixels`, 4799 (80 x 60)"]
    assert small.identity() != OpenClip(model=str(folder), precision="float32").identity()


def test_names_are_short_and_safe_in_a_path(folder: Path) -> None:
    assert OpenClip(pretrained="laion2b_s34b_b88k").name == "ViT-B-16-laion2b_s34b_b88k"
    assert OpenClip(model=str(folder)).name == "tiny-clip"
    assert OpenClip(model="hf-hub:laion/CLIP ViT:L").name == "CLIP-ViT-L"


def test_a_model_relative_to_the_current_directory_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert OpenClip(model="tiny-clip").identity() == OpenClip(model=str(folder)).identity()
    monkeypatch.chdir(folder)
    assert OpenClip(model=".").name == "tiny-clip"


def test_a_convolutional_tower_gives_open_clips_own_features(tmp_path: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_model

    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    config = {**CONFIG, "vision_cfg": vision}
    torch.manual_seed(0)
    save_model(open_clip.CLIP(**config), str(tmp_path / "open_clip_model.safetensors"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(picture(0))[None], normalize=True)[0].numpy()
    tower = OpenClip(model=str(tmp_path), precision="float32").load(CPU)
    np.testing.assert_allclose(embed_one(tower, picture(0)), expected, atol=1e-5)
    half = OpenClip(model=str(tmp_path), precision="bfloat16").load(CPU)
    assert embed_one(half, picture(0)) @ expected >= 0.999


def test_bfloat16_agrees_with_float32(folder: Path) -> None:
    import torch

    if not torch.cpu.get_capabilities().get("avx512_bf16") and not torch.cpu.get_capabilities().get("amx_bf16"):
        pytest.skip("this CPU has no bfloat16 in hardware")
    auto = OpenClip(model=str(folder)).load(CPU)
    assert auto.dtype == torch.bfloat16
    exact = OpenClip(model=str(folder), precision="float32").load(CPU)
    halves, floats = together(list(auto.embed(records(20)))), together(list(exact.embed(records(20))))
    cosine = (halves * floats).sum(1)
    assert cosine.min() >= 0.999
    assert not np.array_equal(halves, floats)


def test_a_failing_source_is_raised_and_a_stopped_reader_leaves_no_thread(tower: ImageTower) -> None:
    def failing() -> Iterator[Record]:
        yield from records(3)
        message = "the disk is missing"
        raise OSError(message)

    with pytest.raises(OSError, match="the disk is missing"):
        list(tower.embed(failing()))
    before = threading.active_count()
    batches = ImageTower(**{**vars(tower), "compute": Compute(device="cpu", batch_size=2)}).embed(records(40))
    next(iter(batches))
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


CAPTIONS = ["a red flag", "A man in a motorized wheelchair, dark skin tone", "🙂", "word " * 200, "a red flag"]


def test_vectors_of_captions_are_open_clips_own_normalised_features() -> None:
    import open_clip
    import torch

    folder = Path(__file__).parents[2] / "examples" / "emoji" / "encoder"
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        expected = [model.eval().encode_text(tokenizer([text]), normalize=True)[0] for text in CAPTIONS]
    stream: list[Record | Invalid] = [Record(str(row), text) for row, text in enumerate(CAPTIONS)]
    stream.insert(2, Invalid("none", "no caption"))
    for batch_size in (1, 2, 64):
        encoder = OpenClip(model=str(folder), precision="float32")
        tower = encoder.load_text(Compute(device="cpu", batch_size=batch_size))
        batches = list(tower.embed(stream))
        np.testing.assert_allclose(together(batches), torch.stack(expected).numpy(), atol=1e-5)
        assert [row for batch in batches for row in batch.rows] == [0, 1, 3, 4, 5]
        assert [item.key for batch in batches for item in batch.skipped] == ["none"]
        assert tower.dimension == together(batches).shape[1]


def test_a_tokenizer_that_does_not_fit_the_text_tower_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"its tokenizer gives token 49407, its text tower knows 100 tokens; put"):
        OpenClip(model=str(folder), precision="float32").load_text(CPU)
