"""References: embedded as training items are, and the training items near to theirs, against whole matrices."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from semdedup_assets.checks.references import no_leaks, reference_files_unchanged, reference_items_embedded
from semdedup_assets.defs_yaml.problems import setting_problems
from semdedup_assets.execution.reference_files import observe_references
from semdedup_assets.execution.stage import Link, StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.stages.reference_embeddings import reference_keys, stored_parts
from semdedup_assets.stages.reference_matches import ReferenceSearch
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.oracle import unit
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard, write_table

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"
NAMES = ("embeddings", "items", "training_sample", "centroids", "assignments")
STAGES = StageGraph(
    tuple(stage for stage in GRAPH.stages if stage.name in NAMES or stage.name.startswith("reference_"))
)
HOSTILE = ["a\nb", "c\td", "e|f", "🙂", "x" * 10_000, "", "same", "same"]


def referring(folder: Path, **changes: Any) -> StageRuns:
    """A pipeline on vectors, with the references `old` and `test`, of two files and one."""
    for seed in range(3):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    # Of the same groups, for the seed is the same: other copies.
    (folder / "old").mkdir(exist_ok=True)
    for seed in (0, 7):
        np.save(folder / "old" / f"{seed}.npy", near_duplicates(seed, copies=4))
    (folder / "test").mkdir(exist_ok=True)
    np.save(folder / "test" / "1.npy", near_duplicates(1)[:20])
    references = {
        "test": {"source": {"kind": "vectors", "path": str(folder / "test")}, "epsilon": 0.02},
        "old": {"source": {"kind": "vectors", "path": str(folder / "old")}, "epsilon": 0.2},
    }
    return StageRuns(vectors_settings(folder, references=references), STAGES).changed(**changes)


def training(runs: StageRuns) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 unit vectors of all training items, as stored."""
    tables = [
        table
        for record in runs.context().index.require_all("embeddings").values()
        for table in read_vectors(record.file(VECTORS))
    ]
    return np.concatenate([each.ids for each in tables]), unit(np.concatenate([each.vectors for each in tables]))


def referred(runs: StageRuns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of a reference's items."""
    parts = [part for part in stored_parts(runs.record("reference_embeddings")) if part.reference == name]
    tables = [table for part in parts for table in read_vectors(part.vectors)]
    return np.concatenate([each.ids for each in tables]), unit(np.concatenate([each.vectors for each in tables]))


def matches(runs: StageRuns, k: str) -> pl.DataFrame:
    record = runs.record("reference_matches", k)
    return pl.concat([pl.read_parquet(record.file(name).path) for name in sorted(record.files)])


def check_exact(runs: StageRuns, k: str) -> None:
    """Every training item within epsilon of a reference, and no other, with the most similar item's similarity."""
    found, (ids, vectors) = matches(runs, k), training(runs)
    for name, reference in runs.pipeline.references.items():
        other_ids, others = referred(runs, name)
        similarity = vectors @ others.T
        best = similarity.max(axis=1)
        # What lies at the threshold float32 may decide otherwise.
        clear = np.abs(best - (1 - reference.epsilon)) > 2e-6
        own = found.filter(pl.col("reference") == name)
        assert own["id"].is_unique().all()
        np.testing.assert_array_equal(np.isin(ids, own["id"].to_numpy())[clear], (best > 1 - reference.epsilon)[clear])
        row = np.searchsorted(ids, own["id"].to_numpy())
        other = np.searchsorted(other_ids, own["reference_id"].to_numpy())
        np.testing.assert_allclose(own["similarity"].to_numpy(), best[row], atol=2e-6)
        np.testing.assert_allclose(similarity[row, other], best[row], atol=2e-6)
        assert len(own) > 0, f"{name} tests nothing"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    runs = referring(tmp_path_factory.mktemp("references"), clustering={"k": [1, 3, 12]})
    runs.run()
    return runs


@pytest.mark.parametrize("k", ["1", "3", "12"])
def test_the_search_misses_nothing_whatever_the_clusters(vectors: StageRuns, k: str) -> None:
    check_exact(vectors, k)
    details = vectors.record("reference_matches", k).details
    assert details["exact"]
    assert details["share_compared"] <= 1


def test_every_clustering_finds_the_same(vectors: StageRuns) -> None:
    columns = ["reference", "id", "reference_id"]
    first, *others = (matches(vectors, k).select(columns).sort(columns) for k in ("1", "3", "12"))
    assert all(first.equals(other) for other in others)


def test_references_that_do_not_fit_the_memory_give_the_same(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0, dimension=64))
    (tmp_path / "old").mkdir()
    for number, seed in enumerate((0, 1, 0)):
        near = near_duplicates(seed, groups=20, copies=1000, dimension=64)
        np.save(tmp_path / "old" / f"{number}.npy", near)
    old = {"source": {"kind": "vectors", "path": str(tmp_path / "old")}, "epsilon": 0.3}
    runs = StageRuns(vectors_settings(tmp_path, references={"old": old}), STAGES)
    runs.run()
    check_exact(runs, "3")
    found = matches(runs, "3")
    small = runs.changed(compute={"memory_mib": 16})
    (partition,) = small.context().index.partitions("reference_matches")
    assert len(ReferenceSearch(small.context(), partition.required_clustering).groups_held_apart) > 1
    small.make("reference_matches", "3")
    assert matches(small, "3").equals(found)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("emoji")
    for path, number in (("source", 1), ("source", 2), ("held out", 3)):
        (folder / path).mkdir(exist_ok=True)
        with tarfile.open(EMOJI / "shards" / f"0000{number}.tar") as whole:
            members = whole.getmembers()[:300]
            with tarfile.open(folder / path / f"{number}.tar", "w") as head:
                for member in members:
                    head.addfile(member, whole.extractfile(member))
    runs = StageRuns(
        {
            "dataset": "emoji",
            "store": str(folder / "store"),
            "source": {"kind": "webdataset", "path": str(folder / "source")},
            "references": {
                "held-out": {"source": {"kind": "webdataset", "path": str(folder / "held out")}, "epsilon": 0.1}
            },
            "encoder": {"kind": "openclip", "model": str(EMOJI / "encoder"), "precision": "float32"},
            "clustering": {"k": [8], "buckets": 2, "iterations": 10},
            "compute": {"device": "cpu"},
        },
        STAGES,
    )
    runs.run()
    return runs


def test_leaks_between_real_images_are_found_named_and_shown(emoji: StageRuns) -> None:
    check_exact(emoji, "8")
    record = emoji.record("reference_leaks", "8")
    table, found = pl.read_parquet(record.file("leaks.parquet").path), matches(emoji, "8")
    assert sorted(table["id"]) == sorted(found["id"])
    assert table["similarity"].is_sorted(descending=True)
    # Each is a drawing of the same concept, or one of its relatives: keys are `<vendor>_<codepoints>`.
    assert {key.partition("_")[0] for key in [*table["key"], *table["reference_key"]]} == {"google", "twitter"}
    keys = reference_keys(emoji.record("reference_embeddings"), found["reference_id"].to_numpy())
    assert set(keys.values()) == set(table["reference_key"])
    (counted,) = record.details["references"]
    assert counted["training_items"] == len(table)
    assert counted["reference_items"] == table["reference_key"].n_unique()
    assert counted["within 0.05"] == (table["similarity"] > 0.95).sum()
    assert counted["within 0.2"] is None
    page = Path(record.file(record.details["page"]).path).read_text()
    assert page.count("data:image/jpeg") > 10
    assert "unavailable" not in page.partition("<body>")[2]
    shown = GRAPH["reference_leaks"].shown(
        emoji.context(), emoji.context().index.partitions("reference_leaks")[0], record
    )
    assert isinstance(shown["table"], Link)
    assert "reference_held-out" in shown


def test_the_check_counts_and_names_leaks_unless_they_are_removed(emoji: StageRuns) -> None:
    found = no_leaks(emoji.context())
    (problem,) = found.problems
    count = emoji.record("reference_leaks", "8").details["references"][0]["training_items"]
    assert problem.measured.startswith(f"{count:,} training items lie within 0.1")
    assert " ~ " in problem.measured
    assert "references.held-out.remove" in problem.remedy


def test_texts_of_references_are_shown_with_their_difference(tmp_path: Path) -> None:
    docstrings = EMOJI.parent / "docstrings"
    (tmp_path / "source").mkdir()
    lines = _docstrings(docstrings / "shards" / "00000.jsonl.gz")[:150]
    (tmp_path / "source" / "0.jsonl").write_text("\n".join(lines[:100]))
    (tmp_path / "test.jsonl").write_text("\n".join([*lines[100:], *lines[:3]]))
    runs = StageRuns(
        {
            "dataset": "docs",
            "store": str(tmp_path / "store"),
            "source": {"kind": "jsonl", "path": str(tmp_path / "source")},
            "references": {"test": {"source": {"kind": "jsonl", "path": str(tmp_path / "test.jsonl")}, "epsilon": 0.2}},
            "encoder": {"kind": "sentence_transformers", "model": str(docstrings / "encoder")},
            "clustering": {"k": [4], "buckets": 1, "iterations": 5},
            "compute": {"device": "cpu"},
        },
        STAGES,
    )
    runs.run()
    check_exact(runs, "4")
    record = runs.record("reference_leaks", "4")
    best = pl.read_parquet(record.file("leaks.parquet").path).head(3)
    np.testing.assert_allclose(best["similarity"].to_numpy(), 1, atol=1e-6)
    page = Path(record.file("index.html").path).read_text()
    assert "<ins>" in page
    assert "nothing to show" not in page


def _docstrings(path: Path) -> list[str]:
    import gzip

    return gzip.decompress(path.read_bytes()).decode().splitlines()


def test_keys_are_never_cut_and_invalid_items_are_counted(tmp_path: Path) -> None:
    rows = list(near_duplicates(0)[: len(HOSTILE)])
    write_table(tmp_path, "0", [*rows[:-1], None], {"text": HOSTILE})
    shutil.move(tmp_path / "source", tmp_path / "test")
    runs = referring(tmp_path)
    source = {"kind": "vectors", "path": str(tmp_path / "test" / "0.parquet"), "vector": "embedding", "key": "text"}
    runs.settings["references"] = {"hostile": {"source": source, "epsilon": 0.5}}
    runs.run()
    keys = set(pl.read_parquet(runs.record("reference_leaks", "3").file("leaks.parquet").path)["reference_key"])
    assert keys <= set(HOSTILE)
    assert len(keys) > 2
    (counted,) = runs.record("reference_embeddings").details["references"]
    assert (counted["items"], counted["skipped"], counted["records"]) == (7, 1, 8)
    (problem,) = reference_items_embedded(runs.context()).problems
    assert problem.partition == "hostile"


def test_changed_files_are_noticed_where_they_are_looked_for(tmp_path: Path) -> None:
    runs = referring(tmp_path)
    runs.run()
    assert runs.run() == {}
    assert not reference_files_unchanged(runs.context()).problems
    np.save(tmp_path / "test" / "2.npy", near_duplicates(2))
    (problem,) = reference_files_unchanged(runs.context()).problems
    assert problem.partition == "test"
    # Nobody has looked yet: what is embedded is what there was.
    assert runs.stale("reference_embeddings") == []
    observe_references(runs.context())
    assert runs.stale("reference_embeddings") == [""]
    assert set(runs.run()) == {"reference_embeddings", "reference_matches", "reference_leaks"}
    check_exact(runs, "3")
    shutil.rmtree(tmp_path / "test")
    observe_references(runs.context())
    assert runs.run() == {}
    (problem,) = reference_files_unchanged(runs.context()).problems
    assert "cannot be listed" in problem.measured


def test_settings_make_again_what_depends_on_them(tmp_path: Path) -> None:
    runs = referring(tmp_path)
    runs.run()
    old, test = (runs.settings["references"][name] for name in ("old", "test"))
    assert set(runs.changed(references={"test": {**test, "epsilon": 0.1}}).run()) == {
        "reference_matches",
        "reference_leaks",
    }
    assert set(runs.changed(references={"test": {**test, "remove": True}}).run()) == {
        "reference_matches",
        "reference_leaks",
    }
    without = runs.changed()
    without.settings["references"] = {"old": old}
    assert set(without.run()) == {"reference_embeddings", "reference_matches", "reference_leaks"}


def test_a_reference_without_files_is_an_error_that_names_it(tmp_path: Path) -> None:
    runs = referring(tmp_path)
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(FileNotFoundError, match="old"):
        runs.run()


def test_references_of_another_width_are_an_error_that_names_them(tmp_path: Path) -> None:
    runs = referring(tmp_path)
    for path in (tmp_path / "test").iterdir():
        np.save(path, near_duplicates(1, dimension=8))
    with pytest.raises(ValueError, match=r"references.test: its vectors have 8 numbers, the centroids 16"):
        runs.run()


def test_what_cannot_be_is_rejected_by_the_settings(tmp_path: Path) -> None:
    runs = referring(tmp_path)
    folder = {"source": {"kind": "folder", "path": "pictures"}}
    with pytest.raises(ValidationError, match=r"references.photos.source.kind: 'folder' holds images.*vectors"):
        Pipeline.model_validate(runs.changed(references={"photos": folder}).settings)
    secret = {"source": {"kind": "vectors", "path": "https://host/a.npy?token=1"}}
    problems = setting_problems(runs.changed(references={"test": secret}).settings)
    assert [problem.setting for problem in problems] == ["attributes.references.test.source.path"]
