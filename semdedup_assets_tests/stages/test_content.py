"""What is noted of a source's content beside its vectors, and files that end early."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.checks.embeddings import files_are_whole, no_shard_excluded, vectors_tell_items_apart
from semdedup_assets.records import content_hash
from semdedup_assets.stages.embeddings import content_hashes, stored_contents
from semdedup_assets_tests.stage_runs import StageRuns, small_pipeline
from semdedup_assets_tests.toy_source import vectors_settings

ENCODER = Path(__file__).parents[2] / "examples" / "docstrings" / "encoder"


def text_pipeline(folder: Path, shards: list[list[str | None]], **changes: Any) -> StageRuns:
    """Texts by the demo's static encoder, a file of JSON lines each; None is a line without a text."""
    (folder / "source").mkdir(parents=True, exist_ok=True)
    for number, texts in enumerate(shards):
        lines = [{} if text is None else {"text": text} for text in texts]
        with gzip.open(folder / "source" / f"{number}.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)
    source = {"kind": "jsonl", "path": str(folder / "source")}
    encoder = {"kind": "sentence_transformers", "model": str(ENCODER)}
    settings = vectors_settings(
        folder, source=source, encoder=encoder, clustering={"k": [1], "buckets": 1}, max_skipped=1
    )
    return StageRuns({**settings, **changes})


def test_the_content_of_every_record_has_a_hash_beside_its_vector(tmp_path: Path) -> None:
    runs = text_pipeline(tmp_path, [["Return the maximum.", None, "Compute the sum.", ""]])
    runs.run(until="embeddings")
    record = runs.record("embeddings", "s000000")
    assert content_hashes(record).tolist() == [
        content_hash("Return the maximum."),
        0,
        content_hash("Compute the sum."),
        0,
    ]


def test_other_content_of_equal_vectors_leaves_the_version_as_it_is(tmp_path: Path) -> None:
    runs = text_pipeline(tmp_path, [["Return the maximum."]])
    runs.run(until="embeddings")
    before = runs.record("embeddings", "s000000")
    text_pipeline(tmp_path, [["return the   MAXIMUM."]])
    assert runs.run(until="embeddings")["embeddings"] == ["s000000"]
    after = runs.record("embeddings", "s000000")
    assert after.version == before.version
    assert content_hashes(after).tolist() != content_hashes(before).tolist()


def test_many_different_items_of_one_vector_are_warned_of_and_copies_are_not(tmp_path: Path) -> None:
    """The encoder does not see letter case: these texts differ to a reader, and not to it."""
    words = "return the maximum"
    alike = [words[:n].upper() + words[n:] for n in range(6)]
    copies = ["Compute the sum of an array."] * 20
    others = [f"Number {n} of some texts" for n in range(30)]
    runs = text_pipeline(tmp_path, [alike[:3] + copies, alike[3:] + alike[:2] + others])
    runs.run(until="embeddings")
    result = vectors_tell_items_apart(runs.context())
    (problem,) = result.problems
    assert problem.measured == "8 items of 6 different contents have one vector"
    assert problem.partition == "0.jsonl.gz:0 and others"
    assert result.measured["largest"] == 6
    four = text_pipeline(tmp_path / "four", [alike[:4] + copies])
    four.run(until="embeddings")
    assert vectors_tell_items_apart(four.context()).problems == []


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_a_file_that_ends_early_excludes_its_shard_or_is_accepted_and_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [
        [f"{shard} {row} {' '.join(map(str, rng.integers(0, 999, 8)))}" for row in range(400)] for shard in range(3)
    ]
    runs = text_pipeline(tmp_path, [list(each) for each in texts])
    path = tmp_path / "source" / "1.jsonl.gz"
    cut(path, 0.5)
    runs.run()
    for stage in ("items", "embeddings"):
        (reason,) = runs.context().index.excluded(stage).values()
        assert f"{path}" in reason
        assert "`cut_files: accept`" in reason
    assert len(no_shard_excluded(runs.context()).problems) == 1
    assert {key.partition(".")[0] for key in runs.kept_keys("0.05|1")} == {"0", "2"}
    assert runs.run() == {}

    accepting = runs.changed(cut_files="accept")
    accepting.make("items", "s000001")
    accepting.make("embeddings", "s000001")
    accepting.run()
    records = [accepting.record(stage, "s000001") for stage in ("items", "embeddings")]
    read = records[0].details["items"]
    assert 100 < read < 300
    assert records[1].details["records"] == read
    assert all(record.details["cut_files"][0][0] == str(path) for record in records)
    (problem,) = files_are_whole(accepting.context()).problems
    assert problem.partition == "s000001"
    assert str(path) in problem.measured
    assert {key.partition(".")[0] for key in accepting.kept_keys("0.05|1")} == {"0", "1", "2"}
    assert accepting.run() == {}

    # Where that is no longer wanted, what was accepted is stale.
    assert runs.stale("items") == runs.stale("embeddings") == ["s000001"]
    runs.run()
    assert list(map(str, runs.context().index.excluded("embeddings"))) == ["s000001"]


def test_accepting_cut_files_brings_back_the_shards_that_they_excluded(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    cut(tmp_path / "source" / "1.npy", 0.5)
    runs.run(until="embeddings")
    assert list(map(str, runs.context().index.excluded("embeddings"))) == ["s000001"]
    accepting = runs.changed(cut_files="accept")
    assert accepting.run(until="embeddings") == {"items": ["s000001"], "embeddings": ["s000001"]}
    assert accepting.run(until="embeddings") == {}
    assert accepting.context().index.excluded("embeddings") == {}


@pytest.mark.parametrize("accept", [False, True])
def test_an_array_that_ends_early_is_no_row_of_invalid_items(tmp_path: Path, accept: bool) -> None:
    runs = small_pipeline(tmp_path, cut_files="accept" if accept else "exclude")
    cut(tmp_path / "source" / "1.npy", 0.5)
    runs.run(until="embeddings")
    record = runs.record("embeddings", "s000001")
    assert record.details["skipped"] == 0
    if accept:
        assert 20 < record.details["items"] < 40
        assert "its 60 rows" in record.details["cut_files"][0][1]
        assert runs.record("items", "s000001").details["items"] == record.details["items"]
    else:
        assert "its 60 rows" in str(record.excluded)


def injected(seed: int) -> list[list[str | None]]:
    """Docstrings of two shards, a third of them copies, some invalid."""
    with gzip.open(ENCODER.parent / "shards" / "00000.jsonl.gz", "rt") as stream:
        texts: list[str | None] = [json.loads(line)["text"] for line in stream][:300]
    rng = np.random.default_rng(seed)
    mixed = [*texts, *(texts[at] for at in rng.integers(0, 300, 150)), None, "", None, " ", ""]
    order = rng.permutation(len(mixed))
    return [[mixed[at] for at in part] for part in np.array_split(order, 2)]


def test_embedding_each_content_once_gives_the_same_results_and_reports_what_it_saved(tmp_path: Path) -> None:
    shards = injected(0)
    once = text_pipeline(tmp_path, shards)
    once.run(until="embeddings")
    assert once.changed(embed_once="never").run(until="embeddings") == {}
    always = once.changed(embed_once="never", store=str(tmp_path / "always"))
    always.run(until="embeddings")
    for shard, texts in zip(("s000000", "s000001"), shards, strict=True):
        found, expected = (runs.record("embeddings", shard) for runs in (once, always))
        assert found.version == expected.version
        for name in ("skipped.parquet", "contents.parquet"):
            assert found.file(name).content() == expected.file(name).content()
        different = {text for text in texts if text and text.strip()}
        assert found.details["embedded"] == len(different)
        assert found.details["shared"] == found.details["items"] - len(different)
        for name in ("items", "skipped", "skipped_examples", "records", "shared_vectors", "id_checksum"):
            assert found.details[name] == expected.details[name]
        assert "shared" not in expected.details
    normalised = once.changed(embed_once="normalised")
    assert normalised.stale("embeddings") == ["s000000", "s000001"]


def test_what_a_record_holds_is_known_by_two_hashes_and_its_sizes(tmp_path: Path) -> None:
    runs = text_pipeline(tmp_path, [["Return the maximum.", None, "été", "été", "Return the minimum."]])
    runs.run(until="embeddings")
    contents = stored_contents(runs.record("embeddings", "s000000"))
    assert contents.sizes["bytes"].tolist() == [19, 0, 5, 5, 19]
    assert contents.sizes["words"].tolist() == [3, 0, 1, 1, 3]
    assert len({tuple(pair) for pair in contents.hashes.tolist()}) == 4
    assert contents.hashes[2].tolist() == contents.hashes[3].tolist()
    assert len(set(contents.hashes[[0, 2, 4]].ravel().tolist())) == 6


@pytest.mark.parametrize(("sameness", "needed"), [("decoded", "image"), ("normalised", "text")])
def test_a_sameness_that_the_source_cannot_have_is_refused(tmp_path: Path, sameness: str, needed: str) -> None:
    runs = small_pipeline(tmp_path, embed_once=sameness)
    with pytest.raises(ValueError, match=f"embed_once: '{sameness}' is for {needed}s, and the source holds vectors"):
        _ = runs.pipeline
