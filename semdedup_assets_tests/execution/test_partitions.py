"""Partition keys are what Dagster makes of dimensions, and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.execution.partitions import Dimension, Partition
from semdedup_assets.kept_sets import Clustering, KeptSet, Selection, Target

DIMENSIONS: list[tuple[Dimension, ...]] = [(), ("shard",), ("k",), ("k", "shard"), ("bucket", "k"), ("epsilon", "k")]
wholes = st.builds(
    Partition,
    bucket=st.integers(0, 9999),
    target=st.sampled_from([Target(epsilon=0.05), Target(share=50.0)]),
    clustering=st.builds(Clustering, st.sampled_from(["auto", "3", "1000"]), st.integers(0, 3)),
    shard=st.integers(0, 10**7).map(lambda index: f"s{index:06d}"),
)


@given(wholes, st.sampled_from(DIMENSIONS))
def test_a_partition_is_read_back_from_its_key(whole: Partition, dimensions: tuple[Dimension, ...]) -> None:
    partition = whole.only(dimensions)
    assert Partition.parse(str(partition), dimensions) == partition


def test_keys_join_dimensions_in_the_order_of_their_names() -> None:
    clustering, target = Clustering("1000", 1), Target.parse("keep=50%")
    assert str(Partition(bucket=3, clustering=clustering)) == "b0003|1000-seed1"
    assert str(Partition(target=target, clustering=clustering)) == "keep=50%|1000-seed1"
    assert str(Partition(clustering=clustering, shard="s000001")) == "1000-seed1|s000001"
    assert str(Partition()) == ""
    assert str(Partition(bucket=3, clustering=clustering).of_range(7)) == "1000-seed1|r0007"


@pytest.mark.parametrize(
    ("key", "dimensions"), [("0.05", ("epsilon", "k")), ("a|b|c", ("epsilon", "k")), ("x|3", ("epsilon", "k"))]
)
def test_a_key_without_these_dimensions_is_refused(key: str, dimensions: tuple[Dimension, ...]) -> None:
    with pytest.raises(ValueError, match=r"has not the dimensions epsilon × k|is neither an epsilon"):
        Partition.parse(key, dimensions)


def test_what_a_partition_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="partition 's000001' has no clustering"):
        _ = Partition(shard="s000001").required_clustering
    with pytest.raises(ValueError, match="partition '3' has no shard"):
        _ = Partition(clustering=Clustering("3")).required_shard
    with pytest.raises(ValueError, match="partition '3' is no kept set"):
        Partition(clustering=Clustering("3")).kept_set(Selection())
    whole = Partition(clustering=Clustering("3"), target=Target(epsilon=0.1))
    assert whole.kept_set(Selection()) == KeptSet(Clustering("3"), Selection(), Target(epsilon=0.1))
