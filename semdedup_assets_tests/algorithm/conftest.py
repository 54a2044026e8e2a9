from collections.abc import Iterator

import faiss
import numpy as np
import pytest
import torch

from semdedup_assets_tests.algorithm.vectors import docstrings
from semdedup_assets_tests.toy_source import STATIC_TEXTS


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Arrays as small as here are slower on several threads, and much slower where tests run side by side."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture(scope="session")
def real_vectors() -> np.ndarray:
    """(n, d) float16, about 500: docstrings of numpy by the demo's static encoder, the first twenty two times."""
    from semdedup_assets.compute import Compute
    from semdedup_assets.encoders import SentenceTransformers
    from semdedup_assets.records import Record

    texts = docstrings("numpy.ma", most=320) + docstrings("numpy.lib", most=160)
    model = SentenceTransformers(model=STATIC_TEXTS["model"]).load(Compute(device="cpu"))
    batches = model.embed(Record(key=str(i), payload=text) for i, text in enumerate(texts + texts[:20]))
    return np.concatenate([batch.vectors for batch in batches]).astype(np.float16)
