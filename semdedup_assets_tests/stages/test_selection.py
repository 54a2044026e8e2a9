"""Scores, masks and manifests of the whole pipeline, cluster by cluster, against the oracle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from semdedup_assets.algorithm.deduplication import semdedup
from semdedup_assets.algorithm.keep_order import KeepStrategy
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Clustering, KeepColumn
from semdedup_assets.stages.centroids import read_centroids
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests import oracle
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

EPSILONS = ["0", "0.01", "0.1", "0.3"]
SHARES = ["keep=50%", "keep=75%"]
CHAIN: dict[str, dict[str, Any]] = {
    "hard": {"keep": "hard"},
    "easy": {"keep": "easy"},
    "random": {"keep": "random", "seed": 3},
    "descending": {"keep": {"column": "quality"}},
    "ascending": {"keep": {"column": "quality", "order": "ascending"}},
    "latest": {"keep": {"column": "time"}},
    "earliest": {"keep": {"column": "time", "order": "ascending"}},
    "middle": {"keep": "middle"},
    "listed": {"keep": [{"column": "origin", "values": ["web", "book"]}, {"column": "time"}, "easy"]},
    "chosen": {"keep": [{"column": "chosen"}, "random"], "seed": 5},
    "protected": {"keep": [{"column": "quality"}, "middle"], "protect": "chosen"},
}
GREEDY: dict[str, dict[str, Any]] = {
    "greedy": {"rule": "greedy"},
    "greedy-easy": {"keep": "easy", "rule": "greedy"},
    "greedy-latest": {"keep": {"column": "time"}, "rule": "greedy"},
    "greedy-protected": {"protect": "chosen", "rule": "greedy"},
}
KS = ["4", "40"]
"""Four ranges of a cluster each, and 32 of 40 clusters."""

RUNS = [
    *((name, "4") for name in (*CHAIN, *GREEDY)),
    *((name, "40") for name in ("hard", "latest", "greedy", "protected")),
]

COLUMNS = {"quality": "float", "time": "int", "origin": "string", "chosen": "bool"}
FILES, ROWS = 5, 60
# As floats, all of these are one number.
TIME = 2**62


def columns_of(file: int) -> dict[str, Sequence[Any]]:
    """A quality, a time, an origin and a choice with gaps and ties."""
    rng = np.random.default_rng(100 + file)
    quality = [None if value == 0 else float(value) for value in rng.integers(0, 6, ROWS)]
    time = [None if value == 0 else TIME + int(value) for value in rng.integers(0, 40, ROWS)]
    origins, chosen = rng.choice(["web", "book", "mail", ""], ROWS), rng.choice(3, ROWS, p=[0.7, 0.2, 0.1])
    return {
        "quality": quality,
        "time": time,
        "origin": [value or None for value in origins.tolist()],
        "chosen": [[False, True, None][value] for value in chosen.tolist()],
    }


def vectors_in(file: int) -> np.ndarray:
    """Near duplicates, and exact duplicates of the first file's head."""
    vectors = near_duplicates(file)
    vectors[:5] = near_duplicates(0)[:5]
    return vectors


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("selection")
    for file in range(FILES):
        write_table(folder, str(file), vectors_in(file), columns_of(file))
    settings = vectors_settings(folder)
    settings["source"] |= {"key": "name", "columns": COLUMNS}
    runs = StageRuns(settings).changed(
        clustering={"k": KS, "buckets": 3, "iterations": 100}, shards={"files_per_shard": 2}
    )
    for k in KS:
        names = {name for name, of in RUNS if of == k}
        chain = {name: chosen for name, chosen in CHAIN.items() if name in names}
        greedy = {name: chosen for name, chosen in GREEDY.items() if name in names}
        runs.changed(selections=chain, epsilons=[*EPSILONS, *SHARES], clustering={"k": [k]}).run()
        runs.changed(selections=greedy, epsilons=EPSILONS, clustering={"k": [k]}).run()
    return runs


@dataclass(frozen=True)
class Selected:
    """What the pipeline wrote under one selection and clustering: all files read, joined by id."""

    runs: StageRuns
    name: str
    k: str
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    cluster: dict[int, int] = field(default_factory=dict)
    similarity: dict[int, float] = field(default_factory=dict)

    @cached_property
    def selection(self) -> Any:
        return self.runs.pipeline.named_selections[self.name]

    @property
    def greedy(self) -> bool:
        return bool(self.selection.rule == "greedy")

    @cached_property
    def clusters(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for item, own in self.cluster.items():
            found.setdefault(own, []).append(item)
        return found

    @cached_property
    def scores(self) -> pl.DataFrame:
        return self.runs.scores(self.k, self.name)

    @cached_property
    def columns(self) -> dict[int, dict[str, Any]]:
        """The carried columns as the source's files were written."""
        found = {}
        for file in range(FILES):
            columns = columns_of(file)
            for row in range(ROWS):
                found[id_of(file, row)] = {name: values[row] for name, values in columns.items()}
        return found

    @property
    def targets(self) -> list[str]:
        return list(self.runs.pipeline.epsilons)

    def masks(self, target: str) -> pl.DataFrame:
        return self.runs.masks(f"{target}|{self.k}", self.name)

    def kept(self, target: str) -> set[int]:
        return set(self.masks(target).filter("kept")["id"].to_list())

    def details(self, target: str) -> dict[str, Any]:
        return self.runs.record("keep_masks", f"{target}|{self.k}", self.name).details

    def epsilon(self, target: str) -> float:
        return float(self.details(target)["epsilon"])

    def order(self, cluster: int) -> list[int]:
        """Ids of a cluster in keep-order, by the definition of each strategy."""
        ids = self.clusters[cluster]
        if self.selection.criteria[-1] == "random":
            return self.scores.filter(pl.col("cluster") == cluster)["id"].to_list()
        return sorted(ids, key=lambda i: (i not in self.protected, *self.rank(i, ids), i))

    def rank(self, item: int, ids: list[int]) -> list[Any]:
        """What orders an item of a cluster, by the definition of each criterion but `random`."""
        median = sorted(self.similarity[i] for i in ids)[(len(ids) - 1) // 2]
        similarity, found = self.similarity[item], list[Any]()
        for keep in self.selection.criteria:
            if not isinstance(keep, KeepColumn):
                found.append({"hard": similarity, "easy": -similarity, "middle": abs(similarity - median)}[keep])
                continue
            value = self.columns[item][keep.column]
            if keep.values is not None:
                found.append([*keep.values, value].index(value) if value is not None else 1 + len(keep.values))
            else:
                sign = -1 if keep.order == "descending" else 1
                found += [value is None, sign * (value or 0)]
        return found

    @cached_property
    def protected(self) -> set[int]:
        """The items that nothing removes."""
        column = self.selection.protect
        return {item for item, values in self.columns.items() if column and values[column]}


def id_of(file: int, row: int) -> int:
    """Two files are a shard, of which ids count the rows."""
    return ((file // 2) << 32) + (file % 2) * ROWS + row


@pytest.fixture(scope="module", params=RUNS, ids="-k".join)
def selected(request: pytest.FixtureRequest, base: StageRuns) -> Selected:
    name, k = request.param
    selections, epsilons = (GREEDY, EPSILONS) if name in GREEDY else (CHAIN, [*EPSILONS, *SHARES])
    found = Selected(base.changed(selections=selections, epsilons=epsilons), name, k)
    assigned = found.runs.context().index.require_all("assignments", Partition(clustering=Clustering(k)))
    for record in assigned.values():
        for table in read_vectors(record.file("assignments.arrow")):
            ids = table.ids.tolist()
            found.cluster.update(zip(ids, table.column("cluster").tolist(), strict=True))
            found.similarity.update(zip(ids, table.column("centroid_similarity").tolist(), strict=True))
            found.vectors.update(zip(ids, np.array(table.vectors), strict=True))
    return found


def test_every_item_is_assigned_once_to_its_nearest_centroid(selected: Selected) -> None:
    assert set(selected.cluster) == {id_of(file, row) for file in range(FILES) for row in range(ROWS)}
    centroids = oracle.unit(read_centroids(selected.runs.context(selected.name), Clustering(selected.k)))
    assert len(centroids) == int(selected.k)
    for item, vector in selected.vectors.items():
        similarities = centroids @ oracle.unit(vector[None])[0]
        assert similarities[selected.cluster[item]] == pytest.approx(similarities.max(), abs=1e-6)
        assert selected.similarity[item] == pytest.approx(similarities[selected.cluster[item]], abs=1e-6)


def test_vectors_are_those_of_the_source(selected: Selected) -> None:
    for file in range(FILES):
        expected = oracle.unit(vectors_in(file))
        found = np.array([selected.vectors[id_of(file, row)] for row in range(ROWS)])
        np.testing.assert_allclose(found, expected, atol=5e-4)


def test_scores_are_those_of_the_paper_in_keep_order(selected: Selected) -> None:
    assert sorted(selected.scores["id"]) == sorted(selected.cluster)
    assert selected.scores["cluster"].is_sorted()
    for cluster in selected.clusters:
        ids = selected.order(cluster)
        found = selected.scores.filter(pl.col("cluster") == cluster)
        assert found["id"].to_list() == ids
        scores = oracle.chain_scores(np.array([selected.vectors[i] for i in ids]))
        alone = np.array([i in selected.protected for i in ids])
        expected = np.where(alone, -np.inf, scores)
        alone[0] = True
        np.testing.assert_allclose(found["similarity"].to_numpy(), expected, atol=1e-5)
        assert found["duplicate_of"].is_null().to_list() == alone.tolist()
        for row, duplicate_of in enumerate(found["duplicate_of"].to_list()):
            if alone[row]:
                continue
            assert duplicate_of in ids[:row]
            pair = oracle.unit(np.array([selected.vectors[ids[row]], selected.vectors[duplicate_of]]))
            assert pair[0] @ pair[1] == pytest.approx(expected[row], abs=1e-5)


def test_the_time_of_items_is_compared_beyond_what_floats_can_tell(base: StageRuns) -> None:
    """Among the items of a cluster are times that differ by one, and by less than a float's step."""
    scores = base.changed(selections=CHAIN, epsilons=[*EPSILONS, *SHARES]).scores("4", "latest")
    times = {id_of(file, row): time for file in range(FILES) for row, time in enumerate(columns_of(file)["time"])}
    assert len({float(time) for time in times.values() if time}) == 1
    for _, rows in scores.group_by("cluster"):
        found = [times[item] for item in rows["id"].to_list()]
        present = [time for time in found if time is not None]
        assert len(set(present)) > 5
        assert found == sorted(present, reverse=True) + [None] * (len(found) - len(present))


def test_masks_are_those_of_the_oracle(selected: Selected) -> None:
    doubtful = 0
    for target in selected.targets:
        epsilon, mask = selected.epsilon(target), selected.masks(target)
        kept = dict(zip(mask["id"].to_list(), mask["kept"].to_list(), strict=True))
        assert set(kept) == set(selected.cluster)
        if epsilon == 0:  # Nothing is more similar than 1; the oracle's rounding would say otherwise.
            assert all(kept.values())
            continue
        for cluster in selected.clusters:
            ids = selected.order(cluster)
            vectors = np.array([selected.vectors[i] for i in ids])
            # float32 decides: at the very border float64 may differ, by less than 1e-6.
            wanted = {
                as_bools(keep_by_definition(selected, ids, vectors, epsilon + shift))
                for shift in (0, 2e-6, -2e-6)
                if epsilon + shift >= 0
            }
            assert as_bools([kept[i] for i in ids]) in wanted
            doubtful += len(wanted) > 1
        assert 0 < sum(kept.values()) < len(kept)
    # A share's epsilon lies at the similarity of a pair: there the oracle is in doubt, and hardly anywhere else.
    assert doubtful <= 2 * len(selected.targets)


def keep_by_definition(selected: Selected, ids: list[int], vectors: np.ndarray, epsilon: float) -> np.ndarray:
    """(n,) bool, what the selection's rule keeps of a cluster in keep-order."""
    protected = np.array([i in selected.protected for i in ids])
    if selected.greedy:
        return oracle.greedy_keep(vectors, epsilon, protected)
    return oracle.chain_keep(vectors, epsilon) | protected


def test_no_protected_item_is_removed_and_those_that_would_be_are_counted(selected: Selected) -> None:
    if not selected.protected:
        assert "protected" not in selected.details("0.1")
        pytest.skip("the selection protects nothing")
    unprotected = {}
    for ids in selected.clusters.values():
        plain = sorted(ids, key=lambda i: (*selected.rank(i, ids), i))
        scores = oracle.chain_scores(np.array([selected.vectors[i] for i in plain]))
        unprotected.update(zip(plain, scores.tolist(), strict=True))
    found = dict(selected.scores.select("id", "protected_similarity").iter_rows())
    assert {item for item, similarity in found.items() if similarity is not None} == selected.protected
    for item in selected.protected:
        assert found[item] == pytest.approx(unprotected[item], abs=1e-5)
    for target in selected.targets:
        epsilon, details = selected.epsilon(target), selected.details(target)
        assert selected.protected <= selected.kept(target)
        assert details["protected"] == len(selected.protected) > 20
        # Within rounding of the border either is right.
        least, most = (
            sum(unprotected[item] > 1 - epsilon + shift for item in selected.protected) for shift in (1e-5, -1e-5)
        )
        assert least <= details["protected_would_be_removed"] <= most
    assert selected.details("0.3")["protected_would_be_removed"] > 5


def as_bools(values: Any) -> tuple[bool, ...]:
    return tuple(bool(value) for value in values)


def test_each_removed_item_names_its_nearest_kept_one(selected: Selected) -> None:
    for target in selected.targets:
        mask, orphans = selected.masks(target), 0
        rows = {row["id"]: row for row in mask.iter_rows(named=True)}
        for ids in selected.clusters.values():
            keep = np.array([rows[i]["kept"] for i in ids])
            nearest = oracle.nearest_kept(np.array([selected.vectors[i] for i in ids]), keep)
            for item, similarity in zip(ids, nearest, strict=True):
                row = rows[item]
                if row["kept"]:
                    assert row["kept_neighbour"] is None
                    assert row["kept_similarity"] is None
                    continue
                assert rows[row["kept_neighbour"]]["kept"]
                assert row["kept_similarity"] == pytest.approx(similarity, abs=1e-5)
                orphans += not row["kept_similarity"] > 1 - selected.epsilon(target)
        details = selected.details(target)
        assert details["orphans"] == orphans
        assert not (selected.greedy and orphans)
        assert details["kept"] == int(mask["kept"].sum())
        assert details["kept"] + details["removed"] == len(rows) == FILES * ROWS
        assert details["clusters"] == len(selected.clusters)
        assert details["clusters_without_kept"] == 0


def test_the_largest_groups_are_those_of_the_masks(selected: Selected) -> None:
    for target in selected.targets:
        removed = selected.masks(target).filter(~pl.col("kept"))["kept_neighbour"].value_counts()
        sizes = sorted(removed["count"].to_list(), reverse=True)[:20]
        groups = selected.details(target)["largest_groups"]
        assert [group["removed"] for group in groups] == sizes
        counts = dict(removed.iter_rows())
        assert all(counts[group["kept"]] == group["removed"] for group in groups)


@pytest.mark.parametrize(("target", "share"), [("keep=50%", 0.5), ("keep=75%", 0.75)])
def test_a_share_is_met_exactly_by_the_scores(selected: Selected, target: str, share: float) -> None:
    if selected.greedy:
        pytest.skip("the settings refuse shares with the greedy rule")
    scores = np.sort(selected.scores["similarity"].to_numpy())
    wanted = int(np.ceil(share * len(scores)))
    ties = int((scores <= scores[wanted - 1]).sum())
    assert selected.details(target)["kept"] == ties
    assert selected.details(target)["kept_fraction"] == ties / len(scores)
    assert ties == wanted or scores[wanted - 1] == scores[wanted]
    assert len(selected.kept(target)) == ties


def test_exact_duplicates_across_shards_keep_one_under_the_greedy_rule(selected: Selected) -> None:
    kept = selected.kept("0.01")
    for row in range(5):
        copies = [id_of(file, row) for file in range(FILES)]
        assert len({selected.cluster[i] for i in copies}) == 1
        assert len(kept.intersection(copies)) <= max(1, len(selected.protected.intersection(copies)))


def test_of_exact_duplicates_the_wanted_one_is_kept(selected: Selected) -> None:
    """Where nothing else is near, the first in keep-order stays."""
    keep = selected.selection.keep
    if selected.protected or not isinstance(keep, KeepColumn):
        pytest.skip("copies are alike but for their columns")
    kept, alone = selected.kept("0.01"), 0
    for row in range(5):
        copies = [id_of(file, row) for file in range(FILES)]
        found = kept.intersection(copies)
        if found:
            (item,) = found
            values = [selected.columns[i][keep.column] for i in copies]
            present = [value for value in values if value is not None]
            best = max(present) if keep.order == "descending" else min(present)
            assert selected.columns[item][keep.column] == best
            alone += 1
    assert alone >= 3


def as_numbers(selected: Selected, keep: KeepColumn | KeepStrategy, ids: np.ndarray) -> np.ndarray | KeepStrategy:
    """(n,) a column as the library takes it: smallest first, nulls masked."""
    if not isinstance(keep, KeepColumn):
        return keep
    values = [selected.columns[int(i)][keep.column] for i in ids]
    if keep.values is not None:
        values = [None if value is None else [*keep.values, value].index(value) for value in values]
    elif keep.order == "descending":
        values = [None if value is None else -value for value in values]
    return np.ma.masked_array([value or 0 for value in values], mask=[value is None for value in values])


def test_the_library_call_agrees_with_the_pipeline(selected: Selected) -> None:
    if selected.selection.criteria[-1] == "random":
        pytest.skip("the library has one seed for clusters and order")
    ids = np.array(sorted(selected.cluster), dtype=np.uint64)
    vectors = np.array([selected.vectors[int(i)] for i in ids])
    result = semdedup(
        vectors,
        k=int(selected.k),
        keep=[as_numbers(selected, each, ids) for each in selected.selection.criteria],
        ids=ids,
        protect=np.isin(ids, list(selected.protected)) if selected.protected else None,
    )
    centroids = read_centroids(selected.runs.context(selected.name), Clustering(selected.k))
    np.testing.assert_allclose(result.centroids, centroids, atol=1e-6)
    assert result.cluster.tolist() == [selected.cluster[int(i)] for i in ids]
    scores = dict(zip(selected.scores["id"].to_list(), selected.scores["similarity"].to_list(), strict=True))
    np.testing.assert_allclose(result.similarity, [scores[int(i)] for i in ids], atol=1e-6)
    if not selected.greedy:
        kept = {int(i) for i in ids[result.keep_mask(selected.epsilon("0.1"))]}
        assert kept == selected.kept("0.1")
        assert result.epsilon_for(keep=0.5) == pytest.approx(selected.epsilon("keep=50%"), abs=1e-6)


def test_masks_shrink_as_epsilon_grows(selected: Selected) -> None:
    if selected.greedy:
        pytest.skip("the greedy rule does not promise it")
    kept = [selected.kept(epsilon) for epsilon in EPSILONS]
    assert all(more >= less for more, less in pairwise(kept))
    assert len(kept[0]) > len(kept[-1])


def test_manifests_hold_the_kept_items_in_the_order_of_the_source(selected: Selected) -> None:
    for target in selected.targets:
        folder, details = selected.runs.manifest(f"{target}|{selected.k}", selected.name)
        table = pl.concat([pl.read_parquet(path) for path in sorted((folder / "parquet").iterdir())])
        kept = selected.kept(target)
        expected = [
            {
                "id": id_of(file, row),
                "shard": f"s{file // 2:06d}",
                "row": (file % 2) * ROWS + row,
                "file": f"{file}.parquet",
                "file_row": row,
                "key": f"{file}-{row}",
                **selected.columns[id_of(file, row)],
            }
            for file in range(FILES)
            for row in range(ROWS)
            if id_of(file, row) in kept
        ]
        of_groups = ("group", "group_size")
        assert table.columns == [*list(expected[0])[:6], *of_groups, *selected.columns[0]]
        rows = table.drop(of_groups).iter_rows(named=True)
        assert [{**row, "file": Path(row["file"]).name} for row in rows] == expected
        assert details["kept"] == len(expected)
        removed = len(selected.cluster) - len(expected)
        assert details["rows_written"] == {"parquet": len(expected), "removed": removed, "keep_lists": len(expected)}


def test_the_same_is_kept_whatever_the_shards_and_the_buckets(base: StageRuns, tmp_path: Path) -> None:
    """Files joined to other shards have other ids, and yet the same items stay, for columns settle the order."""
    chosen = {"selection": {"keep": {"column": "rank"}}, "epsilons": ["0.1", "keep=50%"]}
    for file in range(FILES):
        ranks = np.random.default_rng(file).permutation(ROWS) * FILES + file
        write_table(tmp_path, str(file), vectors_in(file), {"rank": ranks.tolist()})
    settings = vectors_settings(tmp_path, **chosen)
    settings["source"] |= {"key": "name", "columns": {"rank": "int"}}
    kept = []
    for files_per_shard, buckets in ((1, 1), (2, 3), (5, 7)):
        runs = StageRuns(settings).changed(
            store=str(tmp_path / f"store{files_per_shard}"),
            shards={"files_per_shard": files_per_shard},
            clustering={"k": ["1"], "buckets": buckets},
        )
        runs.run()
        kept.append({target: set(runs.kept_keys(f"{target}|1")) for target in ("0.1", "keep=50%")})
    assert kept[0] == kept[1] == kept[2]
    assert base.pipeline.clustering.buckets == 3
