"""A person marks pairs in a browser, and the labels become precision: against a computation by hand."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from semdedup_assets.analyses.label_precision import label_files_are_valid, precision_is_enough
from semdedup_assets.analyses.pair_labels import PairLabels, labels_version
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.analyses.small_pipelines import read_table
from semdedup_assets_tests.analyses.test_pruned_pairs import real_texts
from semdedup_assets_tests.browser import BrowserNotFoundError, offline_page
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.test_browser import SKIP

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEY = "0.2|4"
PRUNED = {"shown": 4, "bands": [0.02, 0.1]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("labels")
    (folder / "labels").mkdir()
    found = real_texts(folder, 500).changed(analyses={"pruned_pairs": PRUNED, "labels": str(folder / "labels")})
    found.make("pruned_pairs", KEY)
    return found


@pytest.fixture
def folder(runs: StageRuns) -> Iterator[Path]:
    path = Path(runs.settings["analyses"]["labels"])
    yield path
    for file in path.iterdir():
        file.unlink()


def page_of(runs: StageRuns) -> Path:
    return Path(runs.record("pruned_pairs", KEY).file("pairs.html").path)


def shown_pairs(runs: StageRuns) -> pl.DataFrame:
    return read_table(runs.record("pruned_pairs", KEY), "pairs.parquet").filter("shown")


def answer(row: dict[str, Any]) -> str:
    """What the person of these tests says of a pair: some of each, and one band is uncertain."""
    number = row["id"] ^ row["kept_id"]
    return "unsure" if number % 7 == 0 else "duplicate" if row["kind"] != "semantic" or number % 3 else "different"


def labels_file(runs: StageRuns, answers: dict[tuple[int, int], str], **changes: Any) -> dict[str, Any]:
    rows = shown_pairs(runs).to_dicts()
    labels = [
        {"removed": str(row["id"]), "kept": str(row["kept_id"]), "contents": row["contents"], "label": label}
        for row in rows
        if (label := answers.get((row["id"], row["kept_id"])))
    ]
    head = {
        "format": "semdedup pair labels, 1",
        "dataset": "texts",
        "labeller": "a",
        "saved": "2026-01-01",
        "name": "Ann",
    }
    return head | {"labels": labels} | changes


def wilson(successes: int, labelled: int, of: int) -> tuple[float, float]:
    """95 % interval of a share, by the textbook's formula; n counts for more the larger a part of all it is."""
    if labelled >= of:
        return successes / labelled, successes / labelled
    z, n, p = 1.959963984540054, labelled * (of - 1) / (of - labelled), successes / labelled
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / (1 + z * z / n), (p + z * z / (2 * n) + half) / (1 + z * z / n)


def expected_rows(runs: StageRuns, said: dict[tuple[int, int], str]) -> dict[str, tuple[float, float, float]]:
    """Precision of each band with pairs and its interval, counted from the masks, the texts and the labels."""
    masks = runs.masks(KEY).filter(~pl.col("kept"))
    items = [
        pl.read_parquet(each.file("items.parquet").path) for each in runs.context().index.require_all("items").values()
    ]
    text = dict(pl.concat(items).select("id", "text").iter_rows())
    limits = {"0–0.02": 0.02, "0.02–0.1": 0.1, "0.1–0.2": 0.2, "beyond 0.2": 9}
    of: dict[str, list[bool]] = {}
    for item, kept, similarity in masks.select("id", "kept_neighbour", "kept_similarity").iter_rows():
        band = next(name for name, limit in limits.items() if similarity > 1 - limit)
        of.setdefault(band, []).append(text[item] == text[kept])
    rows = {}
    for band, equal in of.items():
        inside = shown_pairs(runs).filter(pl.col("band") == band).select("id", "kept_id").iter_rows()
        labels = [said[pair] for pair in inside if said.get(pair) in ("duplicate", "different")]
        rest, yes = len(equal) - sum(equal), labels.count("duplicate")
        shares = (yes / len(labels), *wilson(yes, len(labels), rest)) if rest else (0.0, 0.0, 0.0)
        rows[band] = tuple((sum(equal) + rest * share) / len(equal) for share in shares)
    return rows  # type: ignore[return-value]


@pytest.fixture
def page(runs: StageRuns) -> "Iterator[Page]":
    if os.environ.get(SKIP) == "1":
        pytest.skip(f"{SKIP}=1: the page on which pairs are marked is not tested; install Chromium and unset it")
    try:
        with offline_page(page_of(runs)) as found:
            yield found
    except BrowserNotFoundError as error:
        pytest.fail(f"{error}; {SKIP}=1 leaves these tests out", pytrace=False)


def current(page: "Page") -> tuple[int, int]:
    pair = page.locator("article.current")
    return int(pair.get_attribute("data-removed") or 0), int(pair.get_attribute("data-kept") or 0)


def test_pairs_marked_by_keyboard_are_saved_resumed_and_become_precision(
    runs: StageRuns, folder: Path, page: "Page"
) -> None:
    rows = {(row["id"], row["kept_id"]): row for row in shown_pairs(runs).to_dicts()}
    answers = {pair: answer(row) for pair, row in rows.items()}
    keys = {"duplicate": "d", "different": "n", "unsure": "u"}
    assert page.locator("article.pair:visible").count() == 1
    assert page.locator("#save").is_disabled()
    page.fill("#name", "Bea dn")
    assert page.locator("#state").inner_text() == f"pair 1 of {len(rows)} · 0 marked"
    page.locator("#name").blur()
    for _ in range(len(rows) // 2):
        page.keyboard.press(keys[answers[current(page)]])
    page.reload()
    assert page.input_value("#name") == "Bea dn"
    assert page.locator("#progress").evaluate("bar => bar.value") == len(rows) // 2
    for number in range(len(rows) // 2, len(rows)):
        button = page.locator(f"button[data-label={answers[current(page)]}]")
        page.keyboard.press(keys[answers[current(page)]]) if number % 2 else button.click()
    assert page.locator("#done").is_visible()
    with page.expect_download() as download:
        page.keyboard.press("s")
    name = download.value.suggested_filename
    assert re.fullmatch(r"labels-texts-static-0\.2-4-Bea-dn\.json", name)
    download.value.save_as(folder / name)
    saved = json.loads((folder / name).read_text())
    assert (saved["dataset"], saved["model"], saved["kept_set"], saved["selection"]) == ("texts", "static", KEY, "hard")
    assert {(int(each["removed"]), int(each["kept"])): each["label"] for each in saved["labels"]} == answers
    for each in saved["labels"]:
        row = rows[int(each["removed"]), int(each["kept"])]
        assert (each["band"], each["similarity"]) == (row["band"], pytest.approx(row["similarity"]))
    (record,) = runs.make("label_precision", KEY)
    assert record.details["persons"] == ["Bea dn"]
    table = read_table(record, "precision.parquet").filter(pl.col("pairs") > 0)
    expected = expected_rows(runs, answers)
    assert set(expected) == set(table["band"])
    for row in table.to_dicts():
        found = (row["precision"], row["precision_low"], row["precision_high"])
        assert found == pytest.approx(expected[row["band"]], abs=1e-6)
    whole = sum(row["pairs"] * expected[row["band"]][0] for row in table.to_dicts()) / table["pairs"].sum()
    assert record.details["precision"] == pytest.approx(whole)
    assert record.details["precision_low"] < whole < record.details["precision_high"]


def test_the_page_can_be_used_without_a_mouse_and_shows_all_pairs(runs: StageRuns, page: "Page") -> None:
    pairs = len(shown_pairs(runs))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#state").inner_text().startswith("pair 2 of")
    page.keyboard.press("n")
    page.keyboard.press("ArrowLeft")
    assert page.locator("button[data-label=different]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("d")
    page.keyboard.press("Control+d")
    assert page.locator("#progress").evaluate("bar => bar.value") == 1
    assert not page.locator("article.current .meta").is_visible()
    page.check("#known")
    assert page.locator("article.current .meta").is_visible()
    page.click("#look")
    assert page.locator("article.pair:visible").count() == pairs
    assert page.locator("article[data-label=duplicate]").count() == 1
    page.keyboard.press("n")
    assert page.locator("article[data-label=different]").count() == 0


def save(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_several_persons_are_joined_and_what_they_disagree_on_is_listed(runs: StageRuns, folder: Path) -> None:
    pairs = list(shown_pairs(runs).select("id", "kept_id").iter_rows())
    everything = dict.fromkeys(pairs, "duplicate")
    save(folder, "1.json", labels_file(runs, everything, labeller="a", name="Ann"))
    save(folder, "2.json", labels_file(runs, everything | {pairs[0]: "different", pairs[1]: "different"}, labeller="b"))
    save(folder, "3.json", labels_file(runs, {pairs[1]: "different", pairs[2]: "unsure"}, labeller="c", name="Cem"))
    earlier = labels_file(runs, dict.fromkeys(pairs, "different"), labeller="a", saved="2025-01-01")
    save(folder, "4.json", earlier)
    save(folder, "5.json", labels_file(runs, dict.fromkeys(pairs, "different"), dataset="another"))
    (record,) = runs.make("label_precision", KEY)
    table = read_table(record, "precision.parquet")
    # One to one is nothing, two to one is `different`; one who is unsure says nothing.
    assert table["labelled"].sum() == len(pairs) - 1
    assert table["duplicates"].sum() == len(pairs) - 2
    assert table["unsure"].sum() == 1
    assert table["disagreements"].sum() == record.details["disagreements"] == 2
    listed = read_table(record, "disagreements.parquet")
    assert set(listed.select("id", "kept_id").iter_rows()) == set(pairs[:2])
    assert set(listed["labels"]) == {"different, duplicate", "different, different, duplicate"}
    assert record.details["files_of_other_datasets"] == 1
    assert record.details["persons"] == ["Ann", "Cem"]


def test_files_that_are_none_are_named_with_a_remedy_and_labels_of_other_contents_do_not_count(
    runs: StageRuns, folder: Path
) -> None:
    pairs = list(shown_pairs(runs).select("id", "kept_id").iter_rows())
    good = labels_file(runs, {pairs[0]: "duplicate", pairs[1]: "duplicate"})
    good["labels"][1]["contents"] = "of another time"
    save(folder, "good.json", good)
    save(folder, "cut.json", json.dumps(good)[:-20])
    save(folder, "other.json", {"format": "something else"})
    save(folder, "list.json", [1, 2])
    save(folder, "word.json", good | {"labels": [good["labels"][0] | {"label": "perhaps"}]})
    save(folder, "notes.txt", "is no JSON and is passed over")
    (record,) = runs.make("label_precision", KEY)
    assert record.details["labelled_pairs"] == 1
    assert record.details["labels_of_other_pairs"] == 1
    invalid = {Path(each["file"]).name: each for each in record.details["invalid_label_files"]}
    assert set(invalid) == {"cut.json", "other.json", "list.json", "word.json"}
    assert "not JSON" in invalid["cut.json"]["reason"]
    assert "labels.0.label" in invalid["word.json"]["reason"]
    problems = label_files_are_valid(runs.context()).problems
    assert len(problems) == 4
    assert all("save it again" in problem.remedy for problem in problems)


def test_a_check_warns_where_less_is_precise_than_is_wanted_and_names_an_epsilon(runs: StageRuns, folder: Path) -> None:
    bands = {(row["id"], row["kept_id"]): row["band"] for row in shown_pairs(runs).to_dicts()}
    said = {pair: "duplicate" if band == "0–0.02" else "different" for pair, band in bands.items()}
    save(folder, "1.json", labels_file(runs, said))
    strict = runs.changed(analyses={"precision": 0.95})
    (record,) = strict.make("label_precision", KEY)
    result = precision_is_enough(strict.context())
    (problem,) = result.problems
    assert not result.certain
    assert problem.partition == KEY
    assert f"epsilon {record.details['epsilon_for_precision']:.3g}" in problem.remedy
    assert 0.02 <= record.details["epsilon_for_precision"] < 0.1
    assert record.details["epsilon_for_certain_precision"] <= record.details["epsilon_for_precision"]
    orphans = {pair: "different" if band == "beyond 0.2" else "duplicate" for pair, band in bands.items()}
    save(folder, "1.json", labels_file(runs, orphans))
    exact = runs.changed(analyses={"precision": 1.0})
    (record,) = exact.make("label_precision", KEY)
    assert record.details["epsilon_for_precision"] == 0.2
    (problem,) = precision_is_enough(exact.context()).problems
    assert "`selection.rule: greedy`" in problem.remedy
    lax = runs.changed(analyses={"precision": 0.01})
    lax.make("label_precision", KEY)
    assert not precision_is_enough(lax.context()).problems


def test_new_labels_make_it_stale_whatever_their_file_is_called(runs: StageRuns, folder: Path) -> None:
    pairs = list(shown_pairs(runs).select("id", "kept_id").iter_rows())
    runs.make("label_precision", KEY)
    assert runs.stale("label_precision") == []
    record = runs.record("label_precision", KEY)
    assert (record.details["precision"], record.details["labelled_pairs"]) == (None, 0)
    shown = GRAPH["label_precision"].shown(runs.context(), Partition.parse(KEY, ("epsilon", "k")), record)
    assert "–" in {row["precision"] for row in shown["by_band"].rows}
    save(folder, "1.json", labels_file(runs, {pairs[0]: "duplicate"}))
    assert runs.stale("label_precision") == [KEY]
    runs.make("label_precision", KEY)
    (folder / "1.json").rename(folder / "renamed.json")
    assert runs.stale("label_precision") == []


def test_without_a_setting_there_is_no_such_asset_and_a_missing_folder_is_named(
    runs: StageRuns, tmp_path: Path
) -> None:
    stage, plain = GRAPH["label_precision"], runs.changed(analyses={"labels": None}).pipeline
    assert stage.applies(runs.pipeline, runs.pipeline.selection)
    assert not stage.applies(plain, plain.selection)
    missing = str(tmp_path / "nowhere")
    assert labels_version(missing) == "not read: FileNotFoundError"
    with pytest.raises(FileNotFoundError, match=r"nowhere: .*analyses\.labels.*save the labels"):
        PairLabels.read(missing, dataset="texts")
