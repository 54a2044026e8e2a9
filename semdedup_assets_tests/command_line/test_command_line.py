"""`semdedup check`, `run`, `removed` and `export` on a toy source, by what they write and how they end."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from semdedup_assets.command_line.app import app
from semdedup_assets.command_line.errors import FAILURE, USAGE
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

Ended = tuple[int, list[str], list[str]]
"""Exit status, and the lines of standard output and standard error."""


def write_defs(folder: Path, *settings: dict[str, Any]) -> Path:
    path = folder / "defs.yaml"
    documents = [{"type": "semdedup_assets.SemDedupPipeline", "attributes": each} for each in settings]
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


def semdedup(*arguments: object) -> Ended:
    ended = CliRunner().invoke(app, [str(each) for each in arguments])
    return ended.exit_code, ended.stdout.splitlines(), ended.stderr.splitlines()


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    source = {"kind": "vectors", "path": str(folder / "source"), "vector": "embedding", "key": "name"}
    return vectors_settings(folder, source=source, epsilons=["0.05", "0.2"], **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `defs.yaml` has been made but for figures and galleries, which take longer than all else."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(2):
        write_table(folder, f"s{seed}", near_duplicates(seed))
    write_defs(folder, settings_of(folder))
    status, out, _ = semdedup("run", folder, "--only", "manifests")
    assert status == 0, out
    return folder


def masks(folder: Path, epsilon: str) -> pl.DataFrame:
    """The masks of an epsilon as they lie in the store."""
    return pl.concat(pl.read_parquet(file) for file in folder.glob(f"store/**/epsilon={epsilon}/masks.*.parquet"))


def test_run_makes_a_manifest_and_says_what_it_keeps_and_a_second_time_nothing(tmp_path: Path) -> None:
    for seed in range(2):
        write_table(tmp_path, f"s{seed}", near_duplicates(seed))
    write_defs(tmp_path, settings_of(tmp_path))
    status, out, err = semdedup("run", tmp_path, "--only", "manifests")
    assert status == 0
    names = [line.split()[0] for line in out[1:-4]]
    assert names[0] == "items"
    assert names[-1] == "manifests"
    assert "galleries" not in names
    assert all("partition" in line for line in out[1:-4])
    assert "partitions made" in out[-4]
    for line, epsilon in zip(out[-2:], ("0.05", "0.2"), strict=True):
        _, _, of, kept, removed, _, folder = line.split()
        assert of == epsilon
        written = pl.read_parquet(Path(folder) / "parquet" / "*.parquet")
        assert (len(written), len(written) + int(removed)) == (int(kept), 120)
    assert not [line for line in err if "warning" not in line and "estimate" not in line]

    status, again, _ = semdedup("run", tmp_path, "--only", "manifests")
    assert (status, again[-2:]) == (0, out[-2:])
    assert all("up to date" in line for line in again[1:-3])
    status, remade, _ = semdedup("run", tmp_path, "--only", "centroids", "--again")
    assert [line.split()[0] for line in remade if "partition " in line] == ["centroids"]


def test_check_names_what_would_be_made_and_the_store_does_not_learn_of_the_files(tmp_path: Path, made: Path) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    write_defs(tmp_path, settings_of(tmp_path))
    status, out, _ = semdedup("check", tmp_path, "--no-estimate")
    assert status == 0
    words = " ".join(" ".join(out).split())
    assert "1 files" in words
    assert "items 1, embeddings 1, training_sample, centroids 1, assignments 1" in words
    assert not (tmp_path / "store").exists()

    status, out, _ = semdedup("check", made)
    words = " ".join(" ".join(out).split())
    assert status == 0
    assert "all made, took" in words
    assert "to make figures 1, galleries 2 8 of 10 stages are up to date" in words


def test_check_looks_into_the_source_and_names_a_column_that_it_does_not_have(tmp_path: Path) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    settings = settings_of(tmp_path)
    path = write_defs(tmp_path, {**settings, "source": {**settings["source"], "vector": "embeding"}})
    status, _, err = semdedup("check", tmp_path, "--no-estimate")
    assert status == FAILURE
    assert err[0].startswith("1 problem")
    assert err[1].startswith(f"{path}:")
    assert "attributes.source.vector: " in err[1]
    assert "near names: embedding" in err[1]


def test_removed_lists_what_the_masks_remove_with_the_kept_item_of_each(made: Path) -> None:
    found = masks(made, "0.2")
    expected = found.filter(~pl.col("kept"))
    status, out, _ = semdedup("removed", made, "--epsilon", "0.20", "--format", "jsonl")
    assert status == 0
    rows = [json.loads(line) for line in out]
    names = {int(row["id"]): f"s{int(row['id']) >> 32}-{int(row['id']) & 0xFFFFFFFF}" for row in found.to_dicts()}
    by_key = {names[row["id"]]: row for row in expected.to_dicts()}
    assert {row["key"] for row in rows} == by_key.keys()
    for row in rows:
        of_masks = by_key[row["key"]]
        assert row["kept_key"] == names[of_masks["kept_neighbour"]]
        assert row["similarity"] == pytest.approx(of_masks["kept_similarity"], abs=1e-6)
        assert row["is_orphan"] == (of_masks["kept_similarity"] <= 0.8)
        assert row["file"] == str(made / "source" / f"{row['key'].partition('-')[0]}.parquet")
        assert f"-{row['file_row']}" == row["key"][2:]
        assert row["kept_key"] == f"{Path(row['kept_file']).stem}-{row['kept_file_row']}"

    status, lines, _ = semdedup("removed", made, "--epsilon", "0.2", "--format", "csv", "--limit", 5)
    assert [row["key"] for row in csv.DictReader(lines)] == [row["key"] for row in rows[:5]]
    status, table, _ = semdedup("removed", made, "--epsilon", "0.2", "--limit", 5)
    assert [line.split()[0] for line in table] == ["key", *(row["key"] for row in rows[:5])]


def test_export_writes_what_the_manifest_holds_and_replaces_nothing_unasked(made: Path, tmp_path: Path) -> None:
    to = tmp_path / "deep" / "out"
    command = ("export", made, "--epsilon", "0.05", "--to", to)
    assert semdedup(*command, "--format", "parquet")[0] == 0
    manifest = next(made.glob("store/**/epsilon=0.05/manifests/*/parquet")).parent
    written, expected = (pl.read_parquet(folder / "parquet" / "*.parquet") for folder in (to, manifest))
    assert written.equals(expected)

    status, _, (line,) = semdedup(*command, "--format", "keep_lists")
    assert (status, "--overwrite" in line) == (USAGE, True)
    assert semdedup(*command, "--format", "keep_lists", "--overwrite")[0] == 0
    assert sorted(each.name for each in to.iterdir()) == ["keep_lists", "manifest.json"]
    assert [each.name for each in to.parent.iterdir()] == ["out"]

    (tmp_path / "mine.txt").write_text("mine")
    status, _, (line,) = semdedup(*command[:-1], tmp_path, "--format", "parquet", "--overwrite")
    assert (status, "not removed" in line) == (USAGE, True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("removed",), USAGE, "--epsilon: missing; there are several: 0.05, 0.2"),
        (("removed", "--epsilon", "0.3"), USAGE, "--epsilon: '0.3' is none of those that there are: 0.05, 0.2"),
        (("removed", "--epsilon", "0.2", "--k", "4"), USAGE, "--k: '4' is none of those that there are: 3"),
        (("run", "--only", "assignment"), USAGE, "near names: assignments"),
        (("run", "--with", "figure"), USAGE, "near names: figures"),
        (("run", "--again"), USAGE, "--only STAGE --again"),
        (("run", "--pipeline", "toy/other"), USAGE, "none of those in"),
        (("export", "--format", "parkay", "--to", "out"), USAGE, "near names: parquet"),
        (("export", "--format", "webdataset", "--to", "out"), USAGE, "needs a source of kind webdataset or folder"),
    ],
)
def test_a_mistake_is_a_line_that_says_what_can_be_meant(
    made: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    command, *rest = arguments
    ended, out, err = semdedup(command, made, *rest)
    assert (ended, out) == (status, [])
    (line,) = err
    assert words in line


@pytest.mark.parametrize(("command", "status"), [("check", FAILURE), ("run", USAGE)])
def test_problems_of_settings_are_a_line_each_with_file_and_line(tmp_path: Path, command: str, status: int) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    path = write_defs(tmp_path, settings_of(tmp_path, store="{{ env.SEMDEDUP_NOT_SET }}/store", vectors="float8"))
    ended, _, err = semdedup(command, path)
    assert ended == status
    lines = path.read_text().splitlines()
    at = {
        name: next(n for n, line in enumerate(lines, 1) if line.startswith(f"  {name}:"))
        for name in ("store", "vectors")
    }
    assert err[0].startswith("2 problems")
    assert err[1].startswith(f"{path}:{at['store']} attributes.store: {{{{ env.SEMDEDUP_NOT_SET }}}}/store: the env")
    assert err[2].startswith(f"{path}:{at['vectors']} attributes.vectors: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("a: [", "no valid YAML"),
        ("- 1", "it holds no mapping"),
        ("type: semdedup_assets.ManifestComparison\nattributes: {}", "it holds semdedup_assets.ManifestComparison"),
        ("type: semdedup_assets.SemDedupPipeline", "no attributes"),
    ],
)
def test_what_is_no_pipeline_is_said_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "defs.yaml"
    path.write_text(text)
    status, _, err = semdedup("run", path)
    assert status == USAGE
    (line,) = err
    assert line.startswith(str(path))
    assert words in line


def test_of_several_pipelines_one_is_named_and_run_makes_them_all(tmp_path: Path) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    write_defs(tmp_path, settings_of(tmp_path), settings_of(tmp_path, model="other"))
    status, out, _ = semdedup("run", tmp_path, "--only", "items")
    assert status == 0
    assert [line.partition(":")[0] for line in out if ": store" in line] == ["toy/precomputed", "toy/other"]
    status, _, err = semdedup("removed", tmp_path)
    assert (status, err) == (USAGE, ["--pipeline: missing; there are several: toy/precomputed, toy/other"])
    status, _, err = semdedup("removed", tmp_path, "--pipeline", "toy/other", "--epsilon", "0.2")
    assert (status, "`semdedup run` makes" in err[0]) == (FAILURE, True)


def test_all_pipelines_of_a_file_are_checked_and_none_may_take_anothers_place(tmp_path: Path) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    path = write_defs(tmp_path, settings_of(tmp_path, vectors="float8"), settings_of(tmp_path, max_skipped="much"))
    _, _, err = semdedup("run", path)
    assert [line.split()[1] for line in err if line.startswith(str(path))] == [
        "attributes.vectors:",
        "attributes.max_skipped:",
    ]
    write_defs(tmp_path, settings_of(tmp_path), settings_of(tmp_path))
    status, _, (line,) = semdedup("check", path)
    assert (status, "there are two pipelines toy/precomputed" in line) == (FAILURE, True)
    other = settings_of(tmp_path, model="other")
    other["source"]["path"] += "/s0.parquet"
    write_defs(tmp_path, settings_of(tmp_path), other)
    status, _, (line,) = semdedup("check", path)
    assert (status, "has another source" in line) == (FAILURE, True)


def test_paths_begin_where_the_project_of_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.dg]\ndirectory_type = 'project'\n")
    write_table(tmp_path, "s0", near_duplicates(0))
    folder = tmp_path / "package" / "defs" / "toy"
    folder.mkdir(parents=True)
    settings = settings_of(tmp_path, store="store")
    settings["source"]["path"] = "{{ context.project_root }}/source"
    before = Path.cwd()
    assert semdedup("run", write_defs(folder, settings), "--only", "items")[0] == 0
    assert (tmp_path / "store" / "toy").is_dir()
    assert Path.cwd() == before


def test_a_blocking_check_ends_a_run_with_its_sentence(tmp_path: Path) -> None:
    vectors = near_duplicates(0)
    vectors[:40] = np.nan
    write_table(tmp_path, "s0", vectors)
    write_defs(tmp_path, settings_of(tmp_path))
    status, out, err = semdedup("run", tmp_path, "--only", "manifests")
    assert status == FAILURE
    assert any("s000000" in line for line in err)
    assert not any("Traceback" in line for line in err)
    assert not any(line.startswith("  centroids") for line in out)
