"""Image models beside CLIP: timm's, and TorchScript files."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Timm, TorchScript
from semdedup_assets.encoders.image_tower import ImageTower
from semdedup_assets.records import Invalid, Record
from semdedup_assets_tests.encoders.picture_files import encoded

CPU = Compute(device="cpu")


def picture(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """Random colours, smoothly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


PICTURES = [picture(seed, size) for seed, size in enumerate([(80, 60), (60, 80), (200, 90), (33, 33), (80, 60)])]


def embed(tower: ImageTower, images: list[Image.Image]) -> np.ndarray:
    batches = list(tower.embed([Record(str(at), encoded(image)) for at, image in enumerate(images)]))
    assert not any(batch.skipped for batch in batches)
    return np.concatenate([batch.vectors for batch in batches])


def called_directly(model: torch.nn.Module, preprocess: object) -> np.ndarray:
    """Each picture alone, of unit norm."""
    with torch.inference_mode():
        rows = [model(preprocess(image)[None])[0].numpy() for image in PICTURES]  # type: ignore[operator]
    return np.array([row / np.linalg.norm(row) for row in rows])


@pytest.fixture(scope="module")
def timm_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """timm's smallest models with random weights, in timm's own folder format, classifiers included."""
    root = tmp_path_factory.mktemp("timm")
    for name in ("test_vit", "test_convnext"):
        torch.manual_seed(0)
        timm.models.save_for_hf(timm.create_model(name, num_classes=7), root / name, safe_serialization=True)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_timm_gives_its_own_pooled_features(timm_folders: dict[str, Path], name: str) -> None:
    tower = Timm(model=str(timm_folders[name]), precision="float32").load(CPU)
    model = timm.create_model(f"local-dir:{timm_folders[name]}", pretrained=True, num_classes=0).eval()
    preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    vectors = embed(tower, PICTURES)
    np.testing.assert_allclose(vectors, called_directly(model, preprocess), atol=1e-5)
    assert vectors.shape == (5, tower.dimension) == (5, model.num_features)


def test_a_file_of_weights_gives_what_the_folder_gives(timm_folders: dict[str, Path]) -> None:
    weights = timm_folders["test_vit"] / "model.safetensors"
    named = Timm(model="test_vit", checkpoint=str(weights), precision="float32")
    whole = Timm(model=f"local-dir:{timm_folders['test_vit']}", precision="float32")
    np.testing.assert_allclose(embed(named.load(CPU), PICTURES), embed(whole.load(CPU), PICTURES), atol=1e-5)
    assert named.name == "test_vit-model"
    with pytest.raises(ValueError, match=r"weights cannot be loaded.*set `checkpoint` to a file that fits the model"):
        named.model_copy(update={"model": "test_convnext"}).load(CPU)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_the_image_size_can_be_chosen(timm_folders: dict[str, Path], name: str) -> None:
    encoder = Timm(model=str(timm_folders[name]), image_size=64, precision="float32")
    tower = encoder.load(CPU)
    assert tower.preprocess(PICTURES[0]).shape == (3, 64, 64)
    assert np.isfinite(embed(tower, PICTURES)).all()
    assert encoder.name == f"{name}-64"


def test_unknown_timm_models_are_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, timm_folders: dict[str, Path]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"timm has no 'vit_smal_patch14_dinov2'; near names: .*vit_small_patch14_dinov2"
    ):
        Timm(model="vit_smal_patch14_dinov2").load(CPU)
    (problem,) = Timm(model="resnet18.a1_in2k").configuration_problems()
    assert problem.startswith("model: timm has no 'resnet18.a1_in2k'; near names: resnet18.a1_in1k")
    assert Timm(model="resnet18.a1_in1k").configuration_problems() == []
    with pytest.raises(ValueError, match=r"weights cannot be loaded.*name a local folder"):
        Timm(model="hf-hub:timm/none_of_this_name").load(CPU)
    assert Timm(model="timm/resnet18").problems() == [
        "model: timm/resnet18: no folder with config.json and weights; a hub's id begins with hf-hub:"
    ]
    assert "no such file" in Timm(checkpoint=str(tmp_path / "none.pt")).problems()[0]
    assert Timm().problems() == Timm(model=str(timm_folders["test_vit"])).problems() == []


def test_identity_depends_on_the_content_of_timm_folders(timm_folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = Timm(model=str(timm_folders["test_vit"]))
    moved = Timm(model=str(shutil.copytree(timm_folders["test_vit"], tmp_path / "moved")))
    assert moved.identity() == encoder.identity() == json.loads(json.dumps(encoder.identity()))
    changed = [
        encoder.model_copy(update=update)
        for update in ({"image_size": 64}, {"max_pixels": 9}, {"precision": "float32"})
    ]
    assert len({json.dumps(each.identity()) for each in [encoder, *changed, Timm()]}) == 5
    weights = bytearray((tmp_path / "moved" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "moved" / "model.safetensors").write_bytes(weights)
    assert moved.identity() != encoder.identity()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 5, stride=3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def script(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "tiny.torchscript.pt"
    save_script(model, path)
    return path


def save_script(model: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        torch.jit.script(model).save(path)


PUBLISHED = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        ({}, [transforms.Resize([320, 320])]),  # SSCD's skew_320
        ({"resize": "shortest", "image_size": 288}, [transforms.Resize(288)]),  # its small_288
        ({"resize": "crop", "image_size": 40}, [transforms.Resize(40), transforms.CenterCrop(40)]),
    ],
    ids=["skew_320", "small_288", "crop"],
)
def test_a_torchscript_file_gives_its_own_vectors(
    script: Path, model: torch.nn.Module, settings: dict[str, object], resize: list[object]
) -> None:
    tower = TorchScript(path=str(script), **settings).load(CPU)
    expected = called_directly(model, transforms.Compose([*resize, *PUBLISHED]))
    vectors = embed(tower, PICTURES)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert tower.dimension == vectors.shape[1] == 64


def test_pictures_of_other_proportions_keep_their_rows(script: Path) -> None:
    tower = TorchScript(path=str(script), resize="shortest", image_size=32).load(CPU)
    stream: list[Record | Invalid] = [Record(str(at), encoded(image)) for at, image in enumerate(PICTURES)]
    stream.insert(1, Record("ribbon", encoded(picture(9, (300, 20)))))
    stream.insert(3, Invalid("lost", "missing in the tar"))
    (batch,) = tower.embed(stream)
    assert batch.rows.tolist() == [0, 2, 4, 5, 6]
    assert [(item.row, item.reason) for item in batch.skipped] == [
        (1, "300 x 20 pixels is too elongated for `resize: shortest`, more than 8 to 1"),
        (3, "missing in the tar"),
    ]
    alone = np.concatenate([embed(tower, [image]) for image in PICTURES])
    np.testing.assert_allclose(batch.vectors, alone, atol=1e-5)


def test_files_that_are_no_image_model_are_reported_with_the_remedy(model: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"cannot be used.*for a file of weights use `kind: timm`"):
        TorchScript(path=str(tmp_path / "weights.pt")).load(CPU)
    save_script(torch.nn.Conv2d(3, 4, 3), tmp_path / "map.pt")
    with pytest.raises(ValueError, match=r"it gives shape \(1, 4, 318, 318\) for one image, not one vector"):
        TorchScript(path=str(tmp_path / "map.pt")).load(CPU)
    assert "no such file" in TorchScript(path="none.pt").problems()[0]
    assert TorchScript(path=str(tmp_path / "map.pt")).problems() == []


def test_identity_of_a_torchscript_file(script: Path, tmp_path: Path) -> None:
    encoder = TorchScript(path=str(script))
    moved = TorchScript(path=str(shutil.copy(script, tmp_path / "other.pt")))
    assert moved.identity() == encoder.identity() == json.loads(json.dumps(encoder.identity()))
    updates = ({"resize": "crop"}, {"image_size": 288}, {"mean": (0.5, 0.5, 0.5)}, {"interpolation": "bicubic"})
    changed = [encoder.model_copy(update=update) for update in updates]
    assert len({json.dumps(each.identity()) for each in [encoder, *changed]}) == 5
    assert encoder.name == "tiny.torchscript-squash320"
