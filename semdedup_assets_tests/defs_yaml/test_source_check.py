"""What the first items of a source and a model's configuration show, before anything runs."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.defs_yaml.source_check import checked_source
from semdedup_assets.settings import Pipeline
from semdedup_assets_tests.toy_source import STATIC_TEXTS, near_duplicates, vectors_settings, write_shard, write_table


def found(folder: Path, **changes: Any) -> dict[str, str]:
    """The messages by setting; those of warnings begin with `(warning)`."""
    pipeline = Pipeline.model_validate(vectors_settings(folder, **changes))
    problems = checked_source(pipeline)
    return {
        each.setting.removeprefix("attributes."): f"{'(warning) ' * each.warning}{each.message}" for each in problems
    }


def test_a_source_and_a_model_that_fit_give_nothing(tmp_path: Path) -> None:
    write_table(tmp_path, "a", near_duplicates(0), {"age": list(range(60))})
    source = {"kind": "vectors", "path": str(tmp_path / "source"), "key": "name", "columns": {"age": "int"}}
    assert found(tmp_path, source=source) == {}


def test_names_that_a_table_does_not_have_are_reported_with_near_ones(tmp_path: Path) -> None:
    write_table(tmp_path, "a", near_duplicates(0), {"age": list(range(60))})
    columns = {"AGE": "int", "age": "int"}
    source = {
        "kind": "vectors",
        "path": str(tmp_path / "source"),
        "vector": "embeding",
        "key": "nam",
        "columns": columns,
    }
    problems = found(tmp_path, source=source)
    assert set(problems) == {"source.vector", "source.key", "source.columns.AGE"}
    assert "no 'embeding'; near names: embedding" in problems["source.vector"]
    assert "near names: name" in problems["source.key"]
    assert "near names: age" in problems["source.columns.AGE"]


def test_names_that_the_first_lines_do_not_have_are_reported_and_rare_columns_only_warned_of(tmp_path: Path) -> None:
    lines = [{"content": f"text {number}", "lang": "en"} for number in range(5)]
    write_lines(tmp_path / "source" / "a.jsonl", lines)
    source = {"kind": "jsonl", "path": str(tmp_path / "source"), "text": "contents", "columns": {"score": "float"}}
    problems = found(tmp_path, source=source, encoder=STATIC_TEXTS)
    assert "near names: content" in problems["source.text"]
    assert problems["source.columns.score"].startswith("(warning)")
    source = {**source, "text": "content", "columns": {"langs": "string"}}
    problems = found(tmp_path, source=source, encoder=STATIC_TEXTS)
    assert set(problems) == {"source.columns.langs"}
    assert "near names: lang" in problems["source.columns.langs"]


@pytest.mark.parametrize("first", ["", "\n\n", "no JSON\n" * 3, '{"meta": 1}\n' * 300 + '{"text": "late"}\n'])
def test_a_first_file_without_the_fields_is_no_problem(tmp_path: Path, first: str) -> None:
    write_lines(tmp_path / "source" / "b.jsonl", [{"text": "fine", "key": "b"}])
    (tmp_path / "source" / "a.jsonl").write_text(first)
    source = {"kind": "jsonl", "path": str(tmp_path / "source")}
    problems = found(tmp_path, source=source, encoder=STATIC_TEXTS)
    assert all(message.startswith("(warning)") for message in problems.values())
    (tmp_path / "source" / "b.jsonl").unlink()
    problems = found(tmp_path, source=source, encoder=STATIC_TEXTS)
    assert all(message.startswith("(warning)") for message in problems.values())


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_column_none_of_whose_first_values_fits_its_type_is_warned_of(tmp_path: Path) -> None:
    write_lines(tmp_path / "source" / "a.jsonl", [{"text": "one", "age": "old"}, {"text": "two", "age": "young"}])
    source = {"kind": "jsonl", "path": str(tmp_path / "source"), "columns": {"age": "int"}}
    problems = found(tmp_path, source=source, encoder=STATIC_TEXTS)
    assert problems["source.columns.age"].startswith(
        "(warning) no value of the first 2 items can be used: column 'age'"
    )


def test_one_invalid_item_is_no_problem_and_none_valid_is_a_warning(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"text": ""}, {"text": "fine"}]
    write_lines(tmp_path / "source" / "a.jsonl", lines)
    source = {"kind": "jsonl", "path": str(tmp_path / "source")}
    assert found(tmp_path, source=source, encoder=STATIC_TEXTS) == {}
    write_lines(tmp_path / "source" / "a.jsonl", lines[:1])
    (message,) = found(tmp_path, source=source, encoder=STATIC_TEXTS).values()
    assert message.startswith("(warning) none of the first 1 items can be embedded")
    assert "empty text" in message


def test_images_that_cannot_be_decoded_are_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG no picture")
    changes: dict[str, Any] = {"source": {"kind": "folder", "path": str(folder)}, "encoder": emoji_encoder()}
    (message,) = found(tmp_path, **changes).values()
    assert message.startswith("(warning) none of the first 1 items can be embedded: a.png")
    Image.new("RGB", (8, 8), "red").save(folder / "b.png")
    assert found(tmp_path, **changes) == {}


def emoji_encoder() -> dict[str, str]:
    return {"kind": "openclip", "model": str(Path(__file__).parents[2] / "examples" / "emoji" / "encoder")}


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros(5, np.float32), "holds float32 of shape (5,)"),
        (np.zeros((5, 4), np.int64), "holds int64 of shape (5, 4)"),
        (np.zeros((2, 5, 4), np.float32), "of shape (2, 5, 4)"),
    ],
)
def test_arrays_that_hold_no_vectors_are_reported(tmp_path: Path, array: np.ndarray, named: str) -> None:
    write_shard(tmp_path, "a", array)
    problems = found(tmp_path)
    assert set(problems) == {"source.path"}
    assert named in problems["source.path"]


def test_length_and_norm_of_vectors_are_compared_with_the_encoders_settings(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", 3 * np.eye(5, 8, dtype=np.float32))
    encoder = {"kind": "precomputed", "dimension": 16, "normalise": False}
    problems = found(tmp_path, encoder=encoder)
    assert "have 8 numbers, not 16" in problems["encoder.dimension"]
    assert "unit norm" in problems["encoder.normalise"]


def test_the_root_of_clip_retrieval_is_refused_with_the_path_that_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for name in ("img_emb", "text_emb"):
        write_shard(tmp_path, f"{name}/{name}_0000", near_duplicates(0))
    write_table(tmp_path, "metadata/metadata_0000", near_duplicates(0))
    problems = found(tmp_path)
    for path in (f"`path: {root}/img_emb`", f"`path: {root}/text_emb`", f"`metadata: {root}/metadata`"):
        assert path in problems["source.path"]
    meant = {"kind": "vectors", "path": f"{root}/img_emb", "metadata": f"{root}/metadata", "key": "name"}
    assert found(tmp_path, source=meant) == {}


def test_an_array_without_metadata_has_no_key(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    source = {"kind": "vectors", "path": str(tmp_path / "source"), "key": "name"}
    problems = found(tmp_path, source=source)
    assert "set `metadata`" in problems["source.key"]


def test_no_files_here_is_a_warning_with_near_names(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (message,) = found(tmp_path).values()
    assert message.startswith("(warning) ")
    assert "near names: sources" in message


def test_each_reference_is_looked_into(tmp_path: Path) -> None:
    write_table(tmp_path, "a", near_duplicates(0))
    reference = {"source": {"kind": "vectors", "path": str(tmp_path / "source"), "vector": "vec"}}
    problems = found(tmp_path, references={"test": reference})
    assert set(problems) == {"references.test.source.vector"}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_does_not_answer_is_a_warning_after_some_seconds(tmp_path: Path, silent_server: str) -> None:
    settings = vectors_settings(tmp_path, source={"kind": "vectors", "path": f"{silent_server}/a.npy"})
    (problem,) = checked_source(Pipeline.model_validate(settings), seconds=0.2)
    assert problem.warning
    assert "does not answer within 0.2 s" in problem.message


def test_a_tag_that_openclip_does_not_know_is_reported_with_near_ones(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(make_folder(tmp_path / "source") / "a.png")
    changes = {"source": {"kind": "folder", "path": str(tmp_path / "source")}}
    encoder = {"kind": "openclip", "model": "ViT-B-16", "pretrained": "laion2b_s34b_b88"}
    problems = found(tmp_path, **changes, encoder=encoder)
    assert set(problems) == {"encoder.pretrained"}
    assert "laion2b_s34b_b88k" in problems["encoder.pretrained"]
    assert found(tmp_path, **changes, encoder={**encoder, "pretrained": "laion2b_s34b_b88k"}) == {}


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_model_folder_is_read_for_pooling_length_and_weights(tmp_path: Path) -> None:
    write_lines(tmp_path / "source" / "a.jsonl", [{"text": "one"}])
    source = {"kind": "jsonl", "path": str(tmp_path / "source")}
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    folder = make_folder(tmp_path / "minilm")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    encoder = {"kind": "transformers", "model": str(folder), "max_tokens": 600}
    problems = found(tmp_path, source=source, encoder=encoder)
    assert set(problems) == {"encoder.model", "encoder.pooling", "encoder.max_tokens"}
    assert "holds no weights" in problems["encoder.model"]
    assert "set `mean` or `cls`" in problems["encoder.pooling"]
    assert "at most 512" in problems["encoder.max_tokens"]
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    assert found(tmp_path, source=source, encoder={**encoder, "max_tokens": 512, "pooling": "mean"}) == {}


def test_a_damaged_configuration_of_openclip_is_reported(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(make_folder(tmp_path / "source") / "a.png")
    folder = make_folder(tmp_path / "clip")
    (folder / "open_clip_config.json").write_text('{"model_cfg": ')
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"weights")
    source = {"kind": "folder", "path": str(tmp_path / "source")}
    problems = found(tmp_path, source=source, encoder={"kind": "openclip", "model": str(folder)})
    assert set(problems) == {"encoder.model"}
    assert "is no configuration of OpenCLIP's" in problems["encoder.model"]


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("sentence_transformers", "model.safetensors", 1000, "model.safetensors is cut off or damaged"),
        ("sentence_transformers", "tokenizer.json", None, "holds no tokenizer"),
        ("sentence_transformers", "modules.json", b"[", "modules.json is no JSON"),
        ("sentence_transformers", "modules.json", b"{}", "is not as sentence-transformers writes it"),
        (
            "sentence_transformers",
            "config_sentence_transformers.json",
            b"[1]",
            "is not as sentence-transformers writes",
        ),
    ],
)
def test_a_damaged_folder_of_a_text_model_is_reported(
    tmp_path: Path, kind: str, name: str, content: bytes | int | None, words: str
) -> None:
    write_lines(tmp_path / "source" / "a.jsonl", [{"text": "one"}])
    folder = Path(shutil.copytree(STATIC_TEXTS["model"], tmp_path / "model"))
    damaged = folder / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:content] if isinstance(content, int) else content)
    source = {"kind": "jsonl", "path": str(tmp_path / "source")}
    problems = found(tmp_path, source=source, encoder={"kind": kind, "model": str(folder)})
    assert words in problems["encoder.model"]


def test_a_prompt_that_a_model_does_not_have_is_reported(tmp_path: Path) -> None:
    write_lines(tmp_path / "source" / "a.jsonl", [{"text": "one"}])
    source = {"kind": "jsonl", "path": str(tmp_path / "source")}
    problems = found(tmp_path, source=source, encoder={**STATIC_TEXTS, "prompt_name": "question"})
    assert "has no prompt 'question'" in problems["encoder.prompt_name"]
