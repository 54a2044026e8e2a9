import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semdedup_assets_tests.training.emoji import emoji_manifest, tiny_clip
from semdedup_assets_tests.training.language_models import Corpus, docstrings, manifest_of, small_model


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return emoji_manifest(tmp_path_factory.mktemp("emoji"), 48)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def quiet() -> Iterator[None]:
    """OpenCLIP's program lets every logger speak, and adds handlers that outlive it."""
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of a small OPT and its tokenizer."""
    return small_model(tmp_path_factory.mktemp("language model"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> Corpus:
    """A manifest of docstrings, and a small model to be trained on them."""
    manifest, kept = manifest_of(tmp_path_factory.mktemp("corpus"), docstrings(120))
    return Corpus(manifest, kept, language_model)
