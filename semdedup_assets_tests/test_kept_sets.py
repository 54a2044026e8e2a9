"""What names a kept set is read back from its name, sorts as people expect, and makes a path of its own."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from semdedup_assets.kept_sets import Clustering, KeepColumn, KeptSet, Selection, Target

SAFE = re.compile(r"[A-Za-z0-9_.=-]+")
HOSTILE = [
    "a/b",
    "a_b",
    "a.b",
    "a b",
    "..",
    "../../etc",
    "/",
    ".",
    "é",
    "ö",
    "\n",
    "%2F",
    "a%b",
    "k=3",
    "日本",
    "hard",
    "a:b",
]

clusterings = st.builds(Clustering, st.one_of(st.just("auto"), st.integers(1, 10**9).map(str)), st.integers(0, 2**32))
epsilons = st.floats(0, 2, allow_nan=False).map(lambda value: Target(epsilon=abs(value)))
shares = st.floats(0, 100, exclude_min=True, allow_nan=False).map(lambda value: Target(share=value))
targets = st.one_of(epsilons, shares)
names = st.one_of(st.text(min_size=1, max_size=40), st.sampled_from(["a", "b", "hard", "then", "protect", "greedy"]))
columns = st.one_of(
    st.builds(KeepColumn, column=names, order=st.sampled_from(["ascending", "descending"])),
    st.builds(KeepColumn, column=names, values=st.lists(st.text(max_size=3), min_size=1, max_size=3).map(tuple)),
)
words = st.sampled_from(["hard", "middle", "easy", "random"])
selections = st.builds(
    Selection,
    keep=st.one_of(words, columns, st.lists(st.one_of(words, columns), min_size=1, max_size=4).map(tuple)),
    protect=st.one_of(st.none(), names),
    rule=st.sampled_from(["chain", "greedy"]),
    seed=st.integers(0, 2**32),
)


@given(clusterings)
def test_a_clustering_is_read_back_from_its_key(clustering: Clustering) -> None:
    assert Clustering.parse(str(clustering)) == clustering
    assert SAFE.fullmatch(clustering.path)


@pytest.mark.parametrize(
    ("key", "clustering"),
    [("auto", Clustering("auto")), ("1000", Clustering("1000")), ("1000-seed1", Clustering("1000", 1))],
)
def test_the_keys_of_clusterings_are_those_of_the_partitions(key: str, clustering: Clustering) -> None:
    assert Clustering.parse(key) == clustering
    assert str(clustering) == key
    assert clustering.path == f"k={key}"


@pytest.mark.parametrize(
    "key", ["", "0", "-1", "01", "1.5", "1e3", "AUTO", "1000-seed", "1000-seed-1", " 5", "5\n", "5|0.1"]
)
def test_what_is_no_clustering_is_named(key: str) -> None:
    with pytest.raises(ValueError, match="is not a clustering such as `auto`, `1000` or `1000-seed1`") as error:
        Clustering.parse(key)
    assert repr(key) in str(error.value)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 5)), unique=True))
def test_clusterings_sort_by_number_then_seed_and_auto_comes_first(pairs: list[tuple[int, int]]) -> None:
    found = sorted([Clustering("auto", 3), *(Clustering(str(k), seed) for k, seed in pairs)])
    assert found == [Clustering("auto", 3), *(Clustering(str(k), seed) for k, seed in sorted(pairs))]


@given(targets)
def test_a_target_is_read_back_from_its_key_to_the_last_digit(target: Target) -> None:
    assert Target.parse(str(target)) == target
    assert SAFE.fullmatch(target.path)
    assert "e" not in str(target).replace("keep", "")  # 1e-05 would be another way to write it


@pytest.mark.parametrize(
    ("value", "target", "key"),
    [
        (0.05, Target(epsilon=0.05), "0.05"),
        ("5e-2", Target(epsilon=0.05), "0.05"),
        (0, Target(epsilon=0.0), "0"),
        ("-0.0", Target(epsilon=0.0), "0"),
        (2, Target(epsilon=2.0), "2"),
        (1e-7, Target(epsilon=1e-7), "0.0000001"),
        ("keep=50%", Target(share=50.0), "keep=50%"),
        (" keep=50.00% ", Target(share=50.0), "keep=50%"),
        ("keep=0.1%", Target(share=0.1), "keep=0.1%"),
        ("keep=100%", Target(share=100.0), "keep=100%"),
    ],
)
def test_ways_to_write_a_target_have_one_key(value: object, target: Target, key: str) -> None:
    assert Target.parse(value) == target
    assert str(Target.parse(value)) == key
    assert Target.parse(target) is target


@pytest.mark.parametrize(
    "value", ["", "x", "nan", "inf", -0.1, 2.1, True, None, "keep=0%", "keep=101%", "keep=-5%", "keep=50", "50%", [0.1]]
)
def test_what_is_no_target_is_refused_with_what_is_possible(value: object) -> None:
    with pytest.raises(ValueError, match=r"neither an epsilon in \[0, 2\] nor a target such as `keep=50%`"):
        Target.parse(value)


def test_targets_sort_by_what_they_remove() -> None:
    keys = ["keep=20%", "0.1", "keep=75%", "0.01", "0", "2"]
    assert [str(target) for target in sorted(map(Target.parse, keys))] == [
        "0",
        "0.01",
        "0.1",
        "2",
        "keep=75%",
        "keep=20%",
    ]


@given(clusterings, selections, targets)
def test_a_kept_set_is_read_back_from_its_partition_key(
    clustering: Clustering, selection: Selection, target: Target
) -> None:
    kept_set = KeptSet(clustering, selection, target)
    assert KeptSet.parse(str(kept_set), selection=selection) == kept_set
    folders = kept_set.path.split("/")
    assert folders == [clustering.path, selection.path, target.path]
    assert all(SAFE.fullmatch(folder) and folder not in (".", "..") for folder in folders)


@pytest.mark.parametrize("key", ["", "0.05", "0.05|", "|1000", "1000|0.05x", "x|1000"])
def test_what_is_no_kept_set_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"is not a|is neither"):
        KeptSet.parse(key, selection=Selection())


def test_kept_sets_sort_by_clustering_selection_and_target() -> None:
    easy, hard = Selection(keep="easy"), Selection()
    order = [
        KeptSet(Clustering("auto"), hard, Target.parse("0.1")),
        KeptSet(Clustering("9"), easy, Target.parse("0.5")),
        KeptSet(Clustering("9"), hard, Target.parse("0.05")),
        KeptSet(Clustering("9"), hard, Target.parse("keep=50%")),
        KeptSet(Clustering("10"), easy, Target.parse("0.05")),
    ]
    assert sorted([order[index] for index in (3, 0, 4, 2, 1)]) == order


@given(st.lists(selections, min_size=2, max_size=6))
def test_selections_share_a_path_only_if_they_keep_the_same(found: list[Selection]) -> None:
    def meaning(selection: Selection) -> tuple[object, ...]:
        seed = selection.seed if "random" in selection.criteria else None
        return selection.criteria, selection.protect, selection.rule, seed

    for one in found:
        for other in found:
            assert (one.path == other.path) == (meaning(one) == meaning(other))
            assert (one.identity() == other.identity()) == (meaning(one) == meaning(other))


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_hostile_column_names_have_distinct_safe_paths(order: str) -> None:
    names = [*HOSTILE, "quality", "Quality", "a__b", "a-b"]
    paths = [Selection.model_validate({"keep": {"column": name, "order": order}}).path for name in names]
    assert len({path.lower() for path in paths} - {"quality-" + order}) == len(set(paths)) - 2
    assert all(SAFE.fullmatch(path) and not path.startswith(".") for path in paths)


def test_the_rule_and_the_seed_count_only_where_they_matter() -> None:
    assert Selection(seed=1).path == Selection(seed=2).path == "hard"
    assert Selection(keep="random", seed=1).path == "random-seed1"
    assert Selection(rule="greedy").path == "hard-greedy"
    # Scores do not depend on the rule: both are selected from the same ones.
    assert Selection(rule="greedy").keep_order == Selection().keep_order
    assert Selection.model_validate({"keep": {"column": "quality"}}).path == "quality-descending"


def test_a_name_follows_what_orders_items_and_stays_short() -> None:
    ranked = {"column": "source", "values": ["book", "web"]}
    keep = [{"column": "quality"}, ranked, "middle"]
    selection = Selection.model_validate({"keep": keep, "protect": "chosen", "rule": "greedy"})
    start, end = selection.path.split("ranked-")
    assert start == "quality-descending-then-source-"
    assert re.fullmatch("[0-9a-f]{8}-then-middle-protect-chosen-greedy", end)
    other = {**ranked, "values": ["web", "book"]}
    assert Selection.model_validate({"keep": other}).path != Selection.model_validate({"keep": ranked}).path
    columns = [{"column": f"{'x' * 300}{index}", "order": "ascending"} for index in range(20)]
    long = [Selection.model_validate({"keep": columns[:count], "rule": "greedy"}).path for count in range(1, 21)]
    assert len(set(long)) == 20
    assert max(map(len, long)) < 130
    assert all(map(SAFE.fullmatch, long))


def test_a_list_of_one_is_that_one() -> None:
    for keep in ("middle", {"column": "quality"}):
        assert Selection.model_validate({"keep": [keep]}) == Selection.model_validate({"keep": keep})


def test_a_limit_changes_nothing_that_is_kept() -> None:
    limit = {"column": "source", "max_removed": 0.8}
    limited, plain = Selection.model_validate({"limit": limit}), Selection()
    assert (limited.path, limited.identity(), limited.columns) == (plain.path, plain.identity(), ())
    assert limited == Selection.model_validate({"limit": [limit]})


def test_only_what_orders_and_protects_counts_as_a_column() -> None:
    selection = Selection.model_validate(
        {
            "keep": [{"column": "quality"}, {"column": "source", "values": ["a"]}, "random"],
            "protect": "quality",
            "limit": {"column": "language", "max_removed": 1},
        }
    )
    assert selection.columns == ("quality", "source")


def test_labels_are_for_people() -> None:
    selection = Selection.model_validate({"keep": {"column": "aesthetic score"}, "rule": "greedy"})
    kept_set = KeptSet(Clustering("1000", 1), selection, Target.parse("keep=50%"))
    assert kept_set.label == "k = 1000, seed 1 · aesthetic score descending, greedy · keep 50 %"
    assert KeptSet(Clustering("auto"), Selection(keep="random"), Target.parse(0.05)).label == (
        "k = auto · random seed0 · ε = 0.05"
    )
    listed = [{"column": "source", "values": ["a", "b", "c", "d"]}, {"column": "stars"}, "middle"]
    assert Selection.model_validate({"keep": listed, "protect": "mine"}).label == (
        "source a before b before c … then stars descending then middle, mine protected"
    )


def test_a_selection_refuses_what_it_does_not_know() -> None:
    for wrong in (
        {"keep": "hardest"},
        {"rule": "both"},
        {"seed": -1},
        {"keep": {"column": "q", "order": "up"}},
        {"keep": []},
        {"keep": {"column": "q", "values": []}},
        {"keep": {"column": "q", "values": [1]}},
        {"protect": True},
        {"limit": {"column": "q"}},
        {"limit": {"column": "q", "max_removed": 1.1}},
        {"limit": {"column": "q", "max_removed": "nan"}},
        {"kept": 1},
    ):
        with pytest.raises(ValidationError):
            Selection.model_validate(wrong)
