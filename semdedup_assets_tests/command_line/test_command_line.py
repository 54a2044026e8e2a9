"""`semdedup check`, `run`, `removed` and `export` on a toy source, by what they write and how they end."""

import contextlib
import csv
import io
import json
import logging
import os
import pty
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
import yaml
from typer.testing import CliRunner

from semdedup_assets.command_line import app as commands
from semdedup_assets.command_line.app import app
from semdedup_assets.command_line.errors import FAILURE, USAGE, in_a_line, without_logs_of_libraries
from semdedup_assets.command_line.lines import say, warn
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
    # On a slow machine a line says how far a stage is.
    expected = ("warning", "estimate", ", until ")
    assert not [line for line in err if not any(word in line for word in expected)]

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


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def exported_to(made: Path, folder: Path, *options: str) -> Ended:
    return semdedup("export", made, "--epsilon", "0.05", "--format", "parquet", "--to", folder, *options)


def test_export_removes_nothing_that_no_export_has_written(made: Path, tmp_path: Path) -> None:
    app_of_the_web, own, mixed = tmp_path / "app", tmp_path / "own", tmp_path / "mixed"
    (app_of_the_web / "src").mkdir(parents=True)
    (app_of_the_web / "manifest.json").write_text('{"name": "app", "exported_files": 3}')
    (app_of_the_web / "src" / "app.js").write_text("app()")
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    assert exported_to(made, mixed)[0] == 0
    (mixed / "parquet" / "notes.txt").write_text("mine")
    for folder, words in ((app_of_the_web, "no export"), (own, "no export"), (mixed, "'parquet/notes.txt'")):
        before = files_below(folder)
        status, _, (line,) = exported_to(made, folder, "--overwrite")
        assert (status, words in line, str(folder) in line) == (USAGE, True, True)
        assert files_below(folder) == before
    (mixed / "parquet" / "notes.txt").unlink()
    (mixed / "parquet" / "linked").symlink_to(own)
    assert exported_to(made, mixed, "--overwrite")[0] == USAGE
    (mixed / "parquet" / "linked").unlink()
    assert exported_to(made, mixed, "--overwrite")[0] == 0
    assert (own / "mine.txt").read_text() == "mine"


def test_export_names_a_folder_that_cannot_be_replaced_before_it_writes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    manifest = next(made.glob("store/**/epsilon=0.05/manifests/*/parquet")).parent
    before = files_below(made)
    monkeypatch.chdir(tmp_path / "folder")
    for folder, words in (
        (tmp_path / "link", "is a link to"),
        (tmp_path / "dangling", "is a link to"),
        (Path("/proc"), "a disk is mounted"),
        (Path(), f"{tmp_path / 'folder'} is the folder that this runs in"),
        (Path("..", "folder", ".."), "the folder that this runs in"),
        (manifest, "no export"),
        (made / "store" / "out", "lies in the store"),
        (made / "source" / "out", "lies in the source"),
    ):
        status, _, (line,) = exported_to(made, folder, "--overwrite")
        assert (status, words in line) == (USAGE, True), line
    assert files_below(made) == before
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["dangling", "folder", "link"]


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
        ("- 1", "not a mapping"),
        ("type: SemDedupPipeline\nattributes: {}", "near names: semdedup_assets.SemDedupPipeline"),
        ("type: semdedup_asset.SemDedupPipeline", "near names: semdedup_assets.SemDedupPipeline"),
        ("attributes: {}", "type: missing"),
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
    assert (status, "pipeline toy/precomputed and pipeline toy/precomputed have one name" in line) == (FAILURE, True)
    other = settings_of(tmp_path, model="other")
    other["source"]["path"] += "/s0.parquet"
    write_defs(tmp_path, settings_of(tmp_path), other)
    status, _, (line,) = semdedup("check", path)
    assert (status, "one dataset and two sources or stores" in line) == (FAILURE, True)


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


def test_what_stands_in_the_way_of_one_pipeline_holds_back_no_other(tmp_path: Path) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    good = settings_of(tmp_path, dataset="good")
    missing = [
        {**settings_of(tmp_path, dataset=name), "source": {**good["source"], "path": str(tmp_path / name)}}
        for name in "ab"
    ]
    path = write_defs(tmp_path, *missing, good)
    status, out, err = semdedup("run", path, "--only", "items")
    assert status == FAILURE
    assert [line.partition(":")[0] for line in err] == ["a/precomputed", "b/precomputed"]
    assert any(line.startswith("  items") for line in out)

    status, out, err = semdedup("check", path, "--no-estimate")
    assert status == FAILURE
    wrong = [line for line in err if line.startswith(f"{path}:")]
    assert [line.split()[1:3] for line in wrong] == [["attributes.source.path:", str(tmp_path / name)] for name in "ab"]
    assert [line.split()[0] for line in out if line.endswith(str(path))] == [
        *(each + "/precomputed" for each in "ab"),
        "good/precomputed",
    ]
    assert "to make" in " ".join(out)

    path = write_defs(tmp_path, settings_of(tmp_path, vectors="float8", model="wrong"), good)
    status, out, err = semdedup("check", path, "--no-estimate")
    assert (status, "attributes.vectors:" in err[-1], "to make" in " ".join(out)) == (FAILURE, True, True)
    write_table(tmp_path, "s1", near_duplicates(1))
    status, out, err = semdedup("run", path, "--only", "items")
    assert (status, [line.split()[1] for line in err]) == (USAGE, ["problem", "attributes.vectors:"]), err
    assert "1 partition " in " ".join(out)
    assert semdedup("run", path, "--only", "items", "--pipeline", "good/precomputed")[0] == 0


@pytest.mark.parametrize("store", ["/proc/nowhere/x", "a file", "n" * 300])
def test_check_finds_a_store_that_cannot_be_written(tmp_path: Path, store: str) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    (tmp_path / "a file").write_text("")
    path = write_defs(tmp_path, settings_of(tmp_path, store=str(tmp_path / store)))
    status, _, err = semdedup("check", tmp_path, "--no-estimate")
    assert status == FAILURE
    assert err[1].startswith(f"{path}:")
    assert "attributes.store: " in err[1]
    assert "cannot be written" in err[1]


def test_a_model_or_device_that_fails_names_file_and_line_of_its_setting(tmp_path: Path) -> None:
    write_table(tmp_path, "s0", near_duplicates(0))
    path = write_defs(tmp_path, settings_of(tmp_path, compute={"device": "cuda:77"}))
    line = path.read_text().splitlines().index("    device: cuda:77") + 1
    for command, status in (("check", FAILURE), ("run", USAGE)):
        ended, _, err = semdedup(command, path)
        assert (ended, err[-1].startswith(f"{path}:{line} attributes.compute.device: ")) == (status, True), err


def test_the_environment_is_that_of_the_projects_file_as_in_dagster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dg.toml").write_text("directory_type = 'project'\n")
    (tmp_path / ".env").write_text(f"no assignment\nSEMDEDUP_STORE={tmp_path}/named\n")
    monkeypatch.setenv("SEMDEDUP_STORE", str(tmp_path / "other"))
    write_table(tmp_path, "s0", near_duplicates(0))
    folder = tmp_path / "defs" / "toy"
    folder.mkdir(parents=True)
    # Dagster reads both names.
    write_defs(folder, settings_of(tmp_path, store="{{ env.SEMDEDUP_STORE }}")).rename(folder / "defs.yml")
    status, _, err = semdedup("run", folder, "--only", "items")
    assert (status, err) == (0, [f"{tmp_path / '.env'}:1: no `NAME=value`; it is passed over"])
    assert (tmp_path / "named" / "toy").is_dir()
    assert os.environ["SEMDEDUP_STORE"] == str(tmp_path / "other")


def test_a_pipe_that_breaks_is_a_failure_and_libraries_log_nothing_beside_it(capfd: pytest.CaptureFixture[str]) -> None:
    numpy_file, own_file = str(np.__file__), str(Path(commands.__file__).parent.parent / "stages" / "centroids.py")

    def failing() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.close()
            logging.getLogger("library").error("beside")
            warnings.warn_explicit("Corrupt EXIF data", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")
            warnings.showwarning("beside", UserWarning, numpy_file, 1)
            warnings.showwarning("k is large", UserWarning, own_file, 1)
            ours.sendall(b"work")

    with pytest.raises(typer.Exit) as ended, without_logs_of_libraries(), in_a_line(traceback=False):
        failing()
    assert ended.value.exit_code == FAILURE
    ours, failure = capfd.readouterr().err.splitlines()
    assert ours == "  warning: k is large"
    assert failure == "BrokenPipeError: [Errno 32] Broken pipe (`--traceback` shows where)"
    assert logging.getLogger("library").isEnabledFor(logging.ERROR)


def test_names_of_files_move_no_terminal() -> None:
    line = "two\nlines of \x1b]0;title\a\x1b[2J\r\N{RIGHT-TO-LEFT OVERRIDE}.png"
    terminal, end = pty.openpty()
    with os.fdopen(end, "w") as stream, contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        for write in (warn, say):
            write(line)
            stream.flush()
            written = os.read(terminal, 1000).decode()
            assert "lines of" in written
            assert written.replace("\r\n", "").isprintable()
    os.close(terminal)
    piped = io.StringIO()
    with contextlib.redirect_stdout(piped):
        say(line)
    assert "\N{RIGHT-TO-LEFT OVERRIDE}.png" in piped.getvalue()
