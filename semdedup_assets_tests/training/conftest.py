from pathlib import Path

import pytest

from semdedup_assets_tests.training.language_models import Corpus, docstrings, manifest_of, small_model


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of a small OPT and its tokenizer."""
    return small_model(tmp_path_factory.mktemp("language model"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> Corpus:
    """A manifest of docstrings, and a small model to be trained on them."""
    manifest, kept = manifest_of(tmp_path_factory.mktemp("corpus"), docstrings(120))
    return Corpus(manifest, kept, language_model)
