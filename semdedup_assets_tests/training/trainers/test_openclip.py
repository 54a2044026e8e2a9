"""CLIP by OpenCLIP's training program on a real manifest of emoji: schedule, seeds, resume, reports and bad input."""

import base64
import json
import logging
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip_train.main import random_seed
from safetensors.torch import load_file

from semdedup_assets.encoders.decoding import rgb_image
from semdedup_assets.storage.files import create
from semdedup_assets.training.trainers.image_text import CsvSamples, Passes, Preparation, TarSamples, manifest_samples
from semdedup_assets.training.trainers.openclip import train
from semdedup_assets.training.trainers.spec import DivergedError, TrainerSpec
from semdedup_assets_tests.training.emoji import emoji

Manifest = tuple[Path, dict[str, Any]]
BATCH = 16
pytestmark = pytest.mark.usefixtures("quiet")


@dataclass
class Trained:
    """A training in this process, and what it reported."""

    spec: TrainerSpec
    messages: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> "Trained":
        train(self.spec, self.messages.append, self.warnings.append)
        return self

    @property
    def folder(self) -> Path:
        return Path(self.spec.out) / "model"

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "open_clip_model.safetensors")


def training(manifest: Manifest, clip: Path, out: Path, *, seed: int = 0, **changes: Any) -> Trained:
    settings = {
        "model": f"local-dir:{clip}", "epochs": 2, "batch_size": BATCH, "learning_rate": 1e-3, "warmup_steps": 2,
    }  # fmt: skip
    folder, details = manifest
    specification = {
        "manifest": str(folder), "items": details["kept"], "kept": details["kept"], "steps": None, "seed": seed,
        "out": str(out), "device": "cpu", "settings": settings | changes.pop("settings", {}),
    }  # fmt: skip
    return Trained(TrainerSpec(**{**specification, **changes}))


def only(manifest: Manifest, kind: str, folder: Path) -> Manifest:
    """The same manifest with one format."""
    other = folder / "manifest"
    shutil.copytree(manifest[0], other)
    if kind == "csv":
        shutil.rmtree(other / "webdataset")
    else:
        (other / "open_clip.csv").unlink()
    return other, manifest[1]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


# Order


@given(st.integers(1, 40), st.integers(0, 5), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_passes_hold_every_item_equally_often_however_they_are_cut(items: int, seed: int, cuts: list[int]) -> None:
    passes, first, parts = Passes(items, seed), 0, []
    for count in cuts:
        parts.append(passes.positions(first, count))
        first += count
    found = np.concatenate(parts)
    assert len(found) == first
    for number in range(first // items):
        assert sorted(found[number * items : (number + 1) * items]) == list(range(items))
    assert np.bincount(found, minlength=items).max() <= -(-first // items)


def test_passes_differ_by_pass_and_seed() -> None:
    first = Passes(100, 0).positions(0, 200)
    assert not np.array_equal(first[:100], first[100:])
    assert not np.array_equal(first, Passes(100, 1).positions(0, 200))


# What is read


def test_tars_and_csv_hold_the_same_images_and_captions(manifest: Manifest, tmp_path: Path) -> None:
    folder, details = manifest
    tars = manifest_samples(str(folder), tmp_path)
    table = CsvSamples.of(str(folder / "open_clip.csv"))
    assert isinstance(tars, TarSamples)
    assert len(tars.paths) == 2
    assert len(tars) == len(table) == details["kept"]
    assert {tars[index] for index in range(len(tars))} == {table[index] for index in range(len(table))}
    for index in (0, len(tars) - 1):
        assert Path(table.name(index)).read_bytes() == table[index][0]
        tar, _, member = tars.name(index).partition(": ")
        assert Path(tar).is_file()
        assert member.endswith(".png")


def test_tars_of_an_object_store_are_copied_once(manifest: Manifest, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/manifest"
    for path in (manifest[0] / "webdataset").iterdir():
        with create(f"{url}/webdataset/{path.name}") as stream:
            stream.write(path.read_bytes())
    copied, local = manifest_samples(url, tmp_path / "tars"), manifest_samples(str(manifest[0]), tmp_path)
    assert [copied[index] for index in range(len(copied))] == [local[index] for index in range(len(local))]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "tars").iterdir()}
    manifest_samples(url, tmp_path / "tars")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tars").iterdir()} == written


@pytest.mark.parametrize("augmentation", [{}, {"scale": (0.5, 1.0)}, {"use_timm": True, "re_prob": 1.0}])
def test_images_are_prepared_in_batches_as_openclip_does_one_by_one(augmentation: dict[str, Any]) -> None:
    pictures = [rgb_image(members["png"], shortest_side=None) for members in emoji(9)]
    transform = open_clip.image_transform(32, is_train=True, aug_cfg=augmentation)
    random_seed(5)
    one_by_one = torch.stack([transform(picture) for picture in pictures])
    random_seed(5)
    preparation = Preparation.of(transform)
    assert torch.equal(preparation.stacked([preparation.each(picture) for picture in pictures]), one_by_one)
    assert (preparation.normalize is None) == ("re_prob" in augmentation)


# Training


@pytest.mark.parametrize("kind", ["webdataset", "csv"])
def test_a_model_learns_and_is_a_folder_that_openclip_loads(
    manifest: Manifest, clip: Path, tmp_path: Path, kind: str
) -> None:
    """On fewer items, as many steps as on everything: each is then seen more often."""
    everything = 2 * manifest[1]["kept"]
    steps = 6 * -(-everything // BATCH)
    trained = training(
        only(manifest, kind, tmp_path), clip, tmp_path / "out", items=everything, steps=steps, settings={"epochs": 6}
    ).run()
    totals, *logged = trained.messages
    assert totals == {"steps": steps, "items": steps * BATCH, "tokens": None}
    assert [message["step"] for message in logged] == list(range(1, steps + 1))
    rates = [message["learning_rate"] for message in logged]
    assert rates[:2] == pytest.approx([5e-4, 1e-3])
    assert rates[2:] == pytest.approx([5e-4 * (1 + np.cos(np.pi * n / (steps - 2))) for n in range(steps - 2)])
    losses = [message["loss"] for message in logged]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.3
    assert not trained.warnings

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{trained.folder}")
    assert same({**model.state_dict()}, trained.weights)
    assert open_clip.get_tokenizer(f"local-dir:{trained.folder}")(["a red car"]).equal(
        open_clip.get_tokenizer(f"local-dir:{clip}")(["a red car"])
    )
    assert transform.transforms[0].size == 32
    again = Trained(trained.spec).run()
    assert again.messages == [totals]


def test_same_seed_same_weights_and_another_seed_others(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    first, second, third = (
        training(manifest, clip, tmp_path / f"{number}", seed=seed).run() for number, seed in enumerate((0, 0, 1))
    )
    assert first.messages == second.messages
    assert same(first.weights, second.weights)
    assert not same(first.weights, third.weights)
    # What another training left in a folder is neither resumed nor taken for the result.
    assert same(training(manifest, clip, tmp_path / "0", seed=1).run().weights, third.weights)


def test_weights_beside_the_configuration_change_nothing(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    without = training(manifest, clip, tmp_path / "0").run()
    started = shutil.copytree(without.folder, tmp_path / "clip")
    beside = training(manifest, started, tmp_path / "1").run()
    assert same(without.weights, beside.weights)


def test_a_killed_training_goes_on_as_if_it_had_not_been(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    """Also where the kill cut off a checkpoint that was being written."""
    whole = training(manifest, clip, tmp_path / "whole", settings={"epochs": 4}).run()
    killed = training(manifest, clip, tmp_path / "killed", settings={"epochs": 4})
    with started(killed.spec, tmp_path / "messages") as process:
        assert process.stderr is not None
        assert any("Start epoch 2" in line for line in process.stderr)
        process.kill()
    reported = [json.loads(line) for line in (tmp_path / "messages").read_text().splitlines()]
    found = [line["params"]["payload"] for line in reported if line["method"] == "report_custom_message"]
    assert found[:4] == whole.messages[:4]
    assert not killed.folder.exists()
    (checkpoint,) = Path(killed.spec.out).glob("state/*/checkpoints/epoch_2.pt")
    content = checkpoint.read_bytes()
    (checkpoint.parent / "epoch_3.pt").write_bytes(content[: len(content) // 2])

    killed.run()
    assert "epoch_3.pt was cut off" in killed.warnings[0]
    steps = [message["step"] for message in killed.messages[1:]]
    assert steps == list(range(len(whole.messages) // 2 + 1, len(whole.messages)))
    assert killed.messages[1:] == whole.messages[-len(steps) :]
    assert same(killed.weights, whole.weights)


def started(spec: TrainerSpec, messages: Path) -> subprocess.Popen[str]:
    """The trainer as Dagster Pipes starts it."""
    names = (
        "asset_keys", "code_version_by_asset_key", "provenance_by_asset_key", "partition_key", "partition_key_range",
        "partition_time_window", "job_name",
    )  # fmt: skip
    context = dict.fromkeys(names) | {"run_id": "a run", "retry_number": 0, "extras": spec.model_dump()}
    return subprocess.Popen(
        [sys.executable, "-m", "semdedup_assets.training.trainers.openclip"],
        env={
            **os.environ,
            "DAGSTER_PIPES_CONTEXT": _encoded({"data": context}),
            "DAGSTER_PIPES_MESSAGES": _encoded({"path": str(messages)}),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def _encoded(value: dict[str, Any]) -> str:
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


# Bad input


def test_a_loss_that_is_not_finite_ends_the_training(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    diverging = training(manifest, clip, tmp_path, settings={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(
        DivergedError, match=r"the loss of step \d+ is (nan|inf), .* \d\.?\d*e\+\d+; lower `training.openclip.learn"
    ):
        diverging.run()
    assert not diverging.folder.exists()


def test_a_vocabulary_smaller_than_the_tokenizer_s_is_named(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    small = shutil.copytree(clip, tmp_path / "small")
    config = json.loads((small / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 20
    (small / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"training\.openclip\.model: its tokenizer gives .* knows 20 "):
        training(manifest, small, tmp_path / "out").run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"batch_size": 4096}},
            r"kept items [0-9]+ have image and caption, fewer than a batch of 4,096; lower `training.openclip.batch_si",
        ),
        ({"steps": 7}, "take 6 steps, not 7"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"settings": {"model": "ViT-C-16"}}, "training.openclip.model: OpenCLIP has no 'ViT-C-16'"),
        (
            {"settings": {"model": "local-dir:nowhere"}},
            "training.openclip.model: .*nowhere/open_clip_config.json is not",
        ),
        ({"settings": {"arguments": "--lr 1"}}, r"training.openclip.arguments: --lr cannot be given here"),
        ({"settings": {"arguments": "--pretrained openai"}}, r"--pretrained cannot be given here"),
        ({"settings": {"arguments": "--no-such-thing"}}, "training.openclip.arguments: OpenCLIP does not take them"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    manifest: Manifest, clip: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        training(manifest, clip, tmp_path / "out", **changes).run()
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_images_is_named(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    empty = tmp_path / "manifest"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"/manifest: neither webdataset/\*.tar nor open_clip.csv; put `webdataset`"):
        training((empty, manifest[1]), clip, tmp_path / "out").run()


def test_an_image_that_cannot_be_read_is_named_and_passed_over(
    manifest: Manifest, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, details = only(manifest, "csv", tmp_path)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n")
    with (other / "open_clip.csv").open("a") as table:
        table.write(f"{damaged}\ta damaged image\n{damaged}\t\u00a0\n")
    with caplog.at_level(logging.WARNING):
        trained = training((other, {"kept": details["kept"] + 2}), clip, tmp_path / "out").run()
    assert "1 of 50 kept items have no caption: they are passed over" in trained.warnings[0]
    assert [record.message for record in caplog.records if "passed over" in record.message] == [
        f"passed over: {damaged}: not an image in a known format"
    ]


def test_arguments_of_openclip_decide_the_model_that_is_saved(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    arguments = "--force-image-size 64 --force-quick-gelu --accum-freq 2 --log-every-n-steps 2"
    trained = training(manifest, clip, tmp_path, settings={"arguments": arguments}).run()
    totals, *logged = trained.messages
    assert totals == {"steps": 4, "items": 4 * 2 * BATCH, "tokens": None}
    assert [message["step"] for message in logged] == [1, 2, 3, 4]
    config = json.loads((trained.folder / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"]
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{trained.folder}")
    assert same({**model.state_dict()}, trained.weights)
    assert transform.transforms[0].size == 64
