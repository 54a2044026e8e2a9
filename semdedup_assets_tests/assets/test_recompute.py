"""What is made again after what change: read from the instance's event log, on real files."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from semdedup_assets.assets.jobs import DATASET_TAG, MADE_TAG, MODEL_TAG
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.execution import progress
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import FailedPartitionsError
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.kept_sets import Clustering, KeptSet, Target
from semdedup_assets.storage import vectors
from semdedup_assets.storage.results import RECORD, ResultRecord, read_record
from semdedup_assets_tests.pipeline_runs import UNDRAWN, Partitions, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

SHARDS = ["s000000", "s000001", "s000002"]
BUCKETS = ["b0000", "b0001"]
OF_SHARDS = ("items", "embeddings", "assignments")


def everything(*, k: str = "3", epsilon: str = "0.05", shards: list[str] = SHARDS) -> Partitions:
    return {
        "items": list(shards),
        "embeddings": list(shards),
        "training_sample": [None],
        "centroids": [k],
        **below_centroids(k=k, epsilon=epsilon, shards=shards),
    }


def below_centroids(*, k: str = "3", epsilon: str = "0.05", shards: list[str] = SHARDS) -> Partitions:
    return {"assignments": [f"{k}|{shard}" for shard in shards], **of_selection(k=k, epsilon=epsilon)}


def of_selection(*, k: str = "3", epsilon: str = "0.05", name: str | None = None) -> Partitions:
    """All that a selection has of its own, without the figures."""
    found: Partitions = {
        "duplicate_scores": [f"{bucket}|{k}" for bucket in BUCKETS],
        "keep_masks": [f"{epsilon}|{k}"],
        "manifests": [f"{epsilon}|{k}"],
        "galleries": [f"{epsilon}|{k}"],
    }
    return found if name is None else {f"{name}/{stage}": partitions for stage, partitions in found.items()}


def of_shard(shard: str, *, k: str = "3", epsilon: str = "0.05") -> Partitions:
    """What follows from one changed or new shard: no new sample, and so no new centroids."""
    return {"items": [shard], "embeddings": [shard], **below_centroids(k=k, epsilon=epsilon, shards=[shard])}


def manifest_keys(runs: PipelineRuns, *, k: str = "3", epsilon: str = "0.05") -> set[str]:
    kept_set = KeptSet(Clustering.parse(k), runs.context.selection, Target.parse(epsilon))
    pointer = Path(runs.context.layout.current_manifest(kept_set))
    folder = pointer.parent / json.loads(pointer.read_text())["folder"]
    return set(pl.read_parquet(f"{folder}/parquet/*.parquet")["key"])


def record(runs: PipelineRuns, stage: str, key: str) -> ResultRecord:
    """A partition's record, read from the store."""
    context = runs.context
    found = read_record(context.location(stage, Partition.parse(key, runs.graph[stage].dimensions)))
    assert found is not None
    return found


def contents(runs: PipelineRuns) -> dict[str, str]:
    """The version of every result in the store, by its location."""
    root = Path(runs.context.layout.folder)
    found = {}
    for path in sorted(root.rglob(f"*{RECORD}")):
        location = str(path).removesuffix(RECORD)
        stored = read_record(location)
        assert stored is not None
        # Opening each file holds it against its checksum.
        for name in stored.files:
            stored.file(name).content()
        found[location] = stored.version
    return found


def adopted(runs: PipelineRuns) -> Partitions:
    """Refresh; what was found in the store, not made, and made known to Dagster."""
    before = runs.last_record
    assert runs.refresh() == {}
    return runs.materialised_since(before)


# The whole pipeline


def test_the_first_refresh_makes_everything_in_order_and_the_second_nothing(unmade: PipelineRuns) -> None:
    made = unmade.refresh()
    assert made == everything()
    order = [stage.name for stage in unmade.graph.stages]
    assert list(made) == [stage for stage in order if stage in made]
    assert unmade.stale() == {}
    assert unmade.refresh() == {}
    assert adopted(unmade) == {}


def test_a_refresh_outside_a_run_leaves_one_event_for_each_partition_and_no_run(unmade: PipelineRuns) -> None:
    before = unmade.last_record
    unmade.refresh()
    counts = [count for events in unmade.events_since(before).values() for count in events.values()]
    assert len(counts) == sum(len(partitions) for partitions in everything().values())
    assert set(counts) == {1}
    assert {entry.run_id for asset in everything() for entry in unmade.materialisations(asset, before)} == {""}
    assert unmade.instance.get_runs() == []


def test_a_refresh_in_a_run_logs_one_event_for_each_partition_too(unmade: PipelineRuns) -> None:
    before = unmade.last_record
    job = unmade.definitions.resolve_job_def("toy__precomputed__refresh")
    result = job.execute_in_process(instance=unmade.instance)
    found = unmade.events_since(before)
    assert {asset: sorted(events, key=str) for asset, events in found.items()} == everything()
    assert {count for events in found.values() for count in events.values()} == {1}
    assert {entry.run_id for asset in found for entry in unmade.materialisations(asset, before)} == {result.run_id}
    assert unmade.stale() == {}
    run = unmade.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert (run.tags[DATASET_TAG], run.tags[MODEL_TAG]) == ("toy", "precomputed")
    assert run.tags[MADE_TAG] == ", ".join(f"{asset} {len(keys)}" for asset, keys in everything().items())
    lines = [entry.user_message for entry in unmade.instance.all_logs(result.run_id)]
    for number, (asset, keys) in enumerate(everything().items(), start=1):
        assert f"stage {number} of {len(everything())}, {asset}: {len(keys)} partitions to make" in lines


@pytest.mark.slow
def test_beyond_the_hundred_partitions_that_dagster_looks_at_a_changed_shard_still_counts(tmp_path: Path) -> None:
    for seed in range(101):
        write_shard(tmp_path, f"{seed:03d}", near_duplicates(seed, groups=2))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path), UNDRAWN)
        runs.refresh()
        write_shard(tmp_path, "050", near_duplicates(999, groups=2))
        assert runs.refresh() == of_shard("s000050")
        assert runs.refresh() == {}


# Settings


def test_another_k_embeds_nothing(runs: PipelineRuns) -> None:
    more = runs.changed(clustering={"k": [3, 5]})
    expected = {"centroids": ["5"], **below_centroids(k="5")}
    assert more.stale() == expected
    assert more.refresh() == expected
    assert more.refresh() == {}
    assert more.stale() == {}


def test_another_epsilon_makes_its_own_masks_manifests_and_gallery_and_the_figures_and_no_other(
    runs: PipelineRuns,
) -> None:
    drawn = runs.with_figures
    assert drawn.refresh() == {"figures": ["3"]}
    more = drawn.changed(epsilons=["0.01", "0.05", "keep=50%"])
    new = ["0.01|3", "keep=50%|3"]
    # A figure shows every epsilon.
    expected = {"keep_masks": new, "manifests": new, "figures": ["3"], "galleries": new}
    assert more.stale() == expected
    assert more.refresh() == expected
    assert more.refresh() == {}
    assert more.stale() == {}


def test_a_k_and_an_epsilon_that_come_back_are_still_there(unmade: PipelineRuns) -> None:
    drawn = unmade.with_figures
    more = drawn.changed(clustering={"k": [3, 5]}, epsilons=["0.05", "0.1"])
    more.refresh()
    # The figures show the epsilons that there are.
    assert drawn.refresh() == {"figures": ["3"]}
    assert more.refresh() == {"figures": ["3"]}
    assert more.refresh() == {}
    assert more.stale() == {}


def test_another_keep_and_the_first_again_make_nothing_the_second_time(runs: PipelineRuns) -> None:
    hard = contents(runs)
    easy = runs.changed(selection={"keep": "easy"})
    assert easy.stale() == of_selection()
    assert easy.refresh() == of_selection()
    assert easy.stale() == {}
    assert runs.stale() == of_selection()
    assert adopted(runs) == of_selection()
    assert runs.stale() == {}
    assert hard.items() <= contents(runs).items()


def test_another_seed_is_another_clustering_and_the_first_is_still_there(runs: PipelineRuns) -> None:
    first = contents(runs)
    other = runs.changed(clustering={"seed": 1})
    assert other.refresh() == {"centroids": ["3-seed1"], **below_centroids(k="3-seed1")}
    assert other.stale() == {}
    assert runs.refresh() == {}
    assert runs.stale() == {}
    assert first.items() <= contents(runs).items()
    both = runs.changed(clustering={"seed": [0, 1]})
    assert both.refresh() == {}
    assert both.stale() == {}


def test_another_number_of_buckets_makes_nothing_and_scores_are_grouped_anew(runs: PipelineRuns) -> None:
    before = contents(runs)
    three = runs.changed(clustering={"buckets": 3})
    assert three.refresh() == {}
    assert three.stale() == {}
    assert runs.refresh() == {}
    assert runs.stale() == {}
    assert contents(runs) == before


@pytest.mark.parametrize("change", [{"vectors": "float32"}, {"source": {"key": None}, "encoder": {"dimension": 16}}])
def test_a_changed_encoder_makes_everything_below_the_items_again(runs: PipelineRuns, change: dict[str, Any]) -> None:
    changed = runs.changed(**change)
    assert set(changed.stale()) >= {"embeddings", "training_sample"}
    made = changed.refresh()
    expected = {name: partitions for name, partitions in everything().items() if name != "items"}
    # The other change gives the same bytes, so that what follows is the same.
    assert made == (expected if "vectors" in change else {"embeddings": SHARDS, "training_sample": [None]})
    assert changed.refresh() == {}
    assert changed.stale() == {}


def test_another_model_name_is_another_pipeline_beside_the_first(runs: PipelineRuns) -> None:
    other = runs.changed(model="other")
    assert other.refresh() == everything()
    assert runs.refresh() == {}


def test_another_source_column_embeds_and_compares_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for seed in range(3):
        rows = near_duplicates(seed)
        table = {"embedding": list(rows), "url": [f"{seed}-{row}" for row in range(len(rows))]}
        frame = pl.DataFrame(table, schema_overrides={"embedding": pl.Array(pl.Float32, rows.shape[1])})
        frame.with_columns(quality=pl.int_range(pl.len())).write_parquet(tmp_path / "source" / f"{seed}.parquet")
    settings = vectors_settings(tmp_path)
    settings["source"]["key"] = "url"
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, settings, UNDRAWN)
        assert runs.refresh() == everything()
        more = runs.changed(source={"columns": {"quality": "int"}})
        # The gallery shows the column.
        assert more.refresh() == {"items": SHARDS, "galleries": ["0.05|3"], "manifests": ["0.05|3"]}
        assert more.stale() == {}
        # What orders the items by the column depends on it; what orders them otherwise does not.
        ordered = more.changed(selection={"keep": {"column": "quality"}})
        assert ordered.refresh() == of_selection()
        assert more.refresh() == {}


def test_speed_settings_make_nothing_stale(runs: PipelineRuns) -> None:
    faster = runs.changed(compute={"batch_size": 7, "decoding_threads": 1, "memory_mib": 16}, max_skipped=0.5)
    assert faster.stale() == {}
    assert faster.refresh() == {}


@pytest.mark.parametrize(
    ("change", "first"),
    [
        # More of them without Dagster: `execution/test_result_index.py`.
        ({"training_sample": {"seed": 1}}, None),
        ({"training_sample": {"per_cluster": 10}}, "centroids"),
        ({"selection": {"rule": "greedy"}}, "keep_masks"),
        ({"manifests": ["parquet"]}, "manifests"),
        ({"galleries": {"seed": 1}}, "galleries"),
    ],
)
def test_a_setting_makes_its_own_stage_and_what_follows_run(
    runs: PipelineRuns, change: dict[str, Any], first: str | None
) -> None:
    changed = runs.changed(**change)
    made = changed.refresh()
    if first is None:  # All items are in the sample, whichever seed: the bytes are the same.
        assert made == {"training_sample": [None]}
    else:
        assert next(iter(made)) == first
    if first not in (None, "galleries"):
        assert "manifests" in made
    assert changed.refresh() == {}
    assert changed.stale() == {}


# Selections by name


def test_named_selections_have_assets_of_their_own_below_what_they_share(unmade: PipelineRuns) -> None:
    both = unmade.changed(selections={"paper": {}, "simple": {"keep": "easy", "rule": "greedy"}})
    keys = {key.to_user_string() for key in both.definitions.resolve_asset_graph().get_all_asset_keys()}
    assert {"toy/precomputed/paper/manifests", "toy/precomputed/simple/manifests"} <= keys
    assert {"toy/precomputed/assignments", "toy/precomputed/estimate", "toy/shards"} <= keys
    assert not {"toy/precomputed/manifests", "toy/precomputed/paper/assignments"} & keys
    expected = {
        **{asset: partitions for asset, partitions in everything().items() if asset not in of_selection()},
        **of_selection(name="paper"),
        **of_selection(name="simple"),
    }
    assert both.refresh() == expected
    assert both.stale() == {}
    assert both.refresh() == {}


def test_a_selection_that_is_given_a_name_is_not_made_again_and_one_more_makes_only_its_own(
    runs: PipelineRuns,
) -> None:
    named = runs.changed(selections={"paper": {}})
    assert named.refresh() == {}
    assert named.stale() == {}
    more = runs.changed(selections={"paper": {}, "simple": {"keep": "easy"}})
    assert more.refresh() == of_selection(name="simple")
    assert more.stale() == {}
    assert runs.refresh() == {}


def test_two_rules_of_one_order_share_their_scores(runs: PipelineRuns) -> None:
    both = runs.changed(selections={"paper": {}, "greedy": {"rule": "greedy"}})
    made = both.refresh()
    expected = of_selection(name="greedy")
    assert "greedy/duplicate_scores" not in made
    assert made == {asset: partitions for asset, partitions in expected.items() if asset != "greedy/duplicate_scores"}
    assert both.data_version("greedy/duplicate_scores", "b0000|3") == runs.data_version("duplicate_scores", "b0000|3")
    assert both.stale() == {}


# Shards


def test_a_changed_shard_is_made_again_with_what_follows_but_no_centroids(runs: PipelineRuns) -> None:
    sample, centroids = runs.data_version("training_sample"), runs.data_version("centroids", "3")
    others = [record(runs, "assignments", f"3|{shard}").files for shard in ("s000000", "s000002")]
    write_shard(runs.folder, "1", near_duplicates(7))
    assert runs.refresh() == of_shard("s000001")
    assert runs.data_version("training_sample") == sample
    assert runs.data_version("centroids", "3") == centroids
    assert [record(runs, "assignments", f"3|{shard}").files for shard in ("s000000", "s000002")] == others
    assert runs.refresh() == {}
    # The sample is frozen; a check says when another would be better.
    assert runs.stale() == {}


def test_a_touched_file_with_the_same_bytes_is_read_again_and_nothing_follows(runs: PipelineRuns) -> None:
    os.utime(runs.folder / "source" / "1.npy", ns=(1, 1))
    assert runs.refresh() == {"items": ["s000001"], "embeddings": ["s000001"]}
    assert runs.refresh() == {}
    assert runs.stale() == {}


def test_a_new_shard_is_assigned_to_the_frozen_centroids(runs: PipelineRuns) -> None:
    centroids = runs.data_version("centroids", "3")
    write_shard(runs.folder, "0-sorts-between", near_duplicates(9))
    assert runs.refresh() == of_shard("s000003")
    assert runs.data_version("centroids", "3") == centroids
    assert any(key.startswith("0-sorts-between") for key in manifest_keys(runs))
    assert runs.refresh() == {}


def test_the_items_of_a_vanished_shard_leave_the_manifest(runs: PipelineRuns) -> None:
    assert any(key.startswith("1.npy") for key in manifest_keys(runs))
    (runs.folder / "source" / "1.npy").unlink()
    assert runs.refresh() == of_selection()
    keys = manifest_keys(runs)
    assert keys
    assert not any(key.startswith("1.npy") for key in keys)
    assert runs.refresh() == {}
    assert set(runs.stale()) <= {"training_sample"}


def test_the_number_of_a_vanished_shard_is_never_given_again(runs: PipelineRuns) -> None:
    (runs.folder / "source" / "2.npy").unlink()
    write_shard(runs.folder, "3", near_duplicates(3))
    made = runs.refresh()
    assert made["embeddings"] == ["s000003"]
    assert [shard.name for shard in runs.context.shards] == ["s000000", "s000001", "s000003"]
    assert runs.refresh() == {}


def test_refit_draws_a_new_sample_and_the_centroids_follow(runs: PipelineRuns) -> None:
    sample = runs.data_version("training_sample")
    write_shard(runs.folder, "1", near_duplicates(7))
    runs.refresh()
    runs.materialise("training_sample", config={"refit": True})
    assert runs.data_version("training_sample") != sample
    assert runs.stale() == {"centroids": ["3"]}
    assert runs.refresh() == {"centroids": ["3"], **below_centroids()}
    assert runs.refresh() == {}
    assert runs.stale() == {}


def test_refit_on_the_same_data_makes_nothing_stale(runs: PipelineRuns) -> None:
    runs.materialise("training_sample", config={"refit": True})
    assert runs.stale() == {}
    assert runs.refresh() == {}


# Failures


def test_shards_that_fail_keep_what_was_finished(unmade: PipelineRuns, tmp_path: Path) -> None:
    for name in "12":
        np.save(tmp_path / "source" / f"{name}.npy", np.zeros(3))  # One dimension: no table of vectors.
    impatient = unmade.changed(refresh={"retry_seconds": 0})
    before = unmade.last_record
    with pytest.raises(FailedPartitionsError, match=r"2 of 3 shards .* 1 may be excluded; .*1\.npy"):
        impatient.refresh()
    (first,) = unmade.materialised_since(before)
    assert unmade.materialised_since(before) == {first: ["s000000"]}
    assert unmade.stale()[first] == ["s000001", "s000002"]
    for name in "12":
        write_shard(tmp_path, name, near_duplicates(int(name)))
    assert unmade.refresh() == everything() | {first: ["s000001", "s000002"]}
    assert unmade.refresh() == {}


def test_one_shard_that_always_fails_is_excluded_and_comes_back_when_it_is_mended(
    unmade: PipelineRuns, tmp_path: Path
) -> None:
    path = tmp_path / "source" / "1.npy"
    good = path.read_bytes()
    np.save(path, np.zeros(3))
    impatient = unmade.changed(refresh={"retry_seconds": 0})
    assert impatient.refresh() == everything()
    excluded = Partition(shard="s000001")
    assert unmade.context.index.excluded("embeddings").keys() == {excluded}
    manifest = unmade.last_materialisation("manifests", ["0.05|3"]).metadata
    assert manifest["records"].value == 2 * len(near_duplicates(0))
    assert "s000001" in manifest["made_with"].value["excluded"]
    assert impatient.refresh() == {}
    tried = impatient.refresh(again=True)
    assert tried == {"items": ["s000001"], "embeddings": ["s000001"]}
    path.write_bytes(good)
    assert impatient.refresh() == of_shard("s000001")
    assert unmade.context.index.excluded("embeddings") == {}
    assert "excluded" not in unmade.last_materialisation("embeddings", ["s000001"]).metadata


def test_a_shard_that_fails_twice_and_is_then_mended_is_like_any_other(unmade: PipelineRuns, tmp_path: Path) -> None:
    path = tmp_path / "source" / "1.npy"
    good, lines = path.read_bytes(), list[str]()
    np.save(path, np.zeros(3))

    def mend(line: str) -> None:
        lines.append(line)
        if "s000001: attempt 2 of 3 failed" in line:
            path.write_bytes(good)

    runs = unmade.changed(refresh={"retry_seconds": 0})
    with progress.reporting_to(mend):
        made = runs.refresh()
    # Another file than was observed is not read as if it were that one: the source is observed again.
    assert sum("s000001: attempt" in line for line in lines) == 2
    assert any("1.npy was changed since it was observed" in line for line in lines)
    assert made == everything()
    assert runs.context.index.excluded("embeddings") == runs.context.index.excluded("items") == {}
    assert record(runs, "embeddings", "s000001").details["items"] == len(near_duplicates(1))


def test_where_nothing_can_be_read_the_settings_are_wrong_and_nothing_is_tried_again(
    unmade: PipelineRuns, tmp_path: Path
) -> None:
    for path in (tmp_path / "source").iterdir():
        np.save(path, np.zeros(3))
    before = unmade.last_record
    # Unless it is refused at once, the pause before the next attempt outlasts any patience.
    patient = unmade.changed(refresh={"retry_seconds": 1e6})
    with pytest.raises(FailedPartitionsError, match=r"no shard can be made into \w+; s000000: .*0\.npy"):
        patient.refresh()
    assert unmade.materialised_since(before) == {}


# A store that was lost or damaged


def test_a_lost_store_is_made_again(runs: PipelineRuns) -> None:
    before = manifest_keys(runs)
    shutil.rmtree(runs.folder / "store")
    assert runs.refresh() == everything()
    assert manifest_keys(runs) == before
    assert runs.refresh() == {}


def test_a_lost_file_is_made_again_and_where_its_bytes_are_the_same_nothing_follows(runs: PipelineRuns) -> None:
    Path(record(runs, "assignments", "3|s000001").file("assignments.arrow").path).unlink()
    assert runs.refresh() == {"assignments": ["3|s000001"]}
    assert runs.refresh() == {}
    assert runs.stale() == {}


def flip_a_byte(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[int(len(content) * 0.7)] ^= 0xFF
    Path(path).write_bytes(content)
    # A process looks at a part of a file once; damage is found by a later one.
    vectors._verified.clear()


def test_a_flipped_byte_is_found_where_it_is_read_and_made_again_within_the_same_refresh(runs: PipelineRuns) -> None:
    sound, keys = contents(runs), manifest_keys(runs)
    easy = runs.changed(selection={"keep": "easy"})
    easy.refresh()
    both = contents(runs)
    shutil.rmtree(Path(runs.context.layout.folder) / "k=3" / "scores" / "hard")
    # The scores are to be made again, and read the assignments.
    flip_a_byte(record(runs, "assignments", "3|s000001").file("assignments.arrow").path)
    made = runs.refresh()
    assert made["assignments"] == ["3|s000001"]
    assert made["duplicate_scores"] == ["b0000|3", "b0001|3"]
    assert contents(runs) == both
    assert sound.items() <= both.items()
    assert manifest_keys(runs) == keys
    assert runs.refresh() == {}
    assert runs.stale() == {}


def test_several_damaged_results_are_made_again_within_one_refresh(runs: PipelineRuns) -> None:
    write_shard(runs.folder, "3", near_duplicates(3))
    with dg.DagsterInstance.ephemeral() as instance:
        untouched = PipelineRuns(instance, runs.settings | {"store": str(runs.folder / "untouched")}, UNDRAWN)
        shutil.copytree(runs.folder / "store", runs.folder / "untouched")
        untouched.refresh()
    flip_a_byte(record(runs, "assignments", "3|s000000").file("assignments.arrow").path)
    flip_a_byte(record(runs, "assignments", "3|s000002").file("assignments.arrow").path)
    runs.refresh()
    store, other = runs.context.layout.folder, untouched.context.layout.folder
    versions = {location.removeprefix(store): version for location, version in contents(runs).items()}
    assert versions == {location.removeprefix(other): version for location, version in contents(untouched).items()}
    assert runs.refresh() == {}


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b'{"checksum":"0","record":{"format":1}}'])
def test_garbage_in_a_record_is_made_again_within_one_refresh(runs: PipelineRuns, garbage: bytes) -> None:
    before = contents(runs)
    location = runs.context.location("assignments", Partition.parse("3|s000001", ("k", "shard")))
    Path(f"{location}{RECORD}").write_bytes(garbage)
    assert runs.refresh() == {"assignments": ["3|s000001"]}
    assert contents(runs) == before
    assert runs.refresh() == {}
    assert runs.stale() == {}


# What Dagster does not know yet


def test_a_new_instance_on_a_complete_store_makes_nothing_and_shows_everything_as_up_to_date(
    runs: PipelineRuns,
) -> None:
    before = contents(runs)
    with dg.DagsterInstance.ephemeral() as instance:
        new = replace(runs, instance=instance)
        assert adopted(new) == everything()
        assert new.stale() == {}
        assert contents(new) == before
        assert adopted(new) == {}
        tags = [found.last_materialisation("assignments", ["3|s000001"]).tags or {} for found in (runs, new)]
        for name in ("dagster/code_version", "dagster/data_version"):
            assert tags[0][name] == tags[1][name]
    assert runs.stale() == {}


def test_a_new_instance_on_half_a_store_makes_the_other_half(runs: PipelineRuns) -> None:
    shutil.rmtree(Path(runs.context.layout.folder) / "k=3" / "hard")
    with dg.DagsterInstance.ephemeral() as instance:
        new = replace(runs, instance=instance)
        made = of_selection()
        del made["duplicate_scores"]
        assert new.refresh() == made
        assert new.stale() == {}


# The buttons of the UI


def test_materialising_what_is_up_to_date_makes_nothing_and_reports_it_as_reused(runs: PipelineRuns) -> None:
    before = contents(runs), record(runs, "embeddings", "s000001").files
    for asset, partitions in {
        "embeddings": ("s000000", "s000002"),
        "training_sample": (),
        "assignments": ("3|s000000", "3|s000002"),
        "duplicate_scores": ("b0000|3", "b0001|3"),
        "keep_masks": ("0.05|3",),
        "manifests": ("0.05|3",),
    }.items():
        last = runs.last_record
        runs.materialise(asset, *partitions)
        assert runs.materialised_since(last) == {asset: everything()[asset]}
        for partition in everything()[asset]:
            event = runs.last_materialisation(asset, None if partition is None else [partition])
            assert event.metadata["reused"].value is True
    assert (contents(runs), record(runs, "embeddings", "s000001").files) == before
    assert runs.stale() == {}
    assert runs.refresh() == {}


def test_materialising_again_makes_it(runs: PipelineRuns) -> None:
    before = contents(runs), record(runs, "embeddings", "s000001").files
    runs.materialise("embeddings", "s000001", config={"again": True})
    assert "reused" not in runs.last_materialisation("embeddings", ["s000001"]).metadata
    assert contents(runs) == before[0]
    assert record(runs, "embeddings", "s000001").files != before[1]
    assert runs.stale() == {}


def test_a_run_of_one_partition_logs_one_event_and_one_of_many_ends_with_each_partition_s_own(
    runs: PipelineRuns,
) -> None:
    for name in "012":
        write_shard(runs.folder, name, near_duplicates(int(name) + 10, groups=int(name) + 5))
    update_shard_index(runs.context)
    before = runs.last_record
    runs.materialise("embeddings", "s000000")
    assert runs.events_since(before) == {"embeddings": {"s000000": 1}}
    for shard in SHARDS[1:]:
        assert runs.last_materialisation("embeddings", [shard]).metadata["items"].value == 60
    runs.materialise("embeddings", *SHARDS)
    items = [runs.last_materialisation("embeddings", [shard]).metadata["items"].value for shard in SHARDS]
    assert items == [15, 18, 21]
    versions = [runs.data_version("embeddings", shard) for shard in SHARDS]
    assert versions == [record(runs, "embeddings", shard).version for shard in SHARDS]


def test_a_range_that_fails_halfway_keeps_what_was_finished(runs: PipelineRuns) -> None:
    more = runs.changed(clustering={"k": [3, 5]})
    more.materialise("centroids", "5")
    flip_a_byte(record(runs, "embeddings", "s000001").file("vectors.arrow").path)
    before = runs.last_record
    result = more.materialise("assignments", "5|s000000", "5|s000002", raise_on_error=False)
    assert not result.success
    assert runs.materialised_since(before) == {"assignments": ["5|s000000"]}
    # The damaged shard was set aside: it is made again, and the finished partition is not.
    made = more.refresh()
    assert made["embeddings"] == ["s000001"]
    assert made["assignments"] == ["5|s000001", "5|s000002"]
    assert more.stale() == {}


def test_a_reversed_range_is_refused(runs: PipelineRuns) -> None:
    with pytest.raises(dg.Failure, match="its end comes before its start"):
        runs.materialise("embeddings", "s000002", "s000000")


def test_every_partition_records_what_it_was_made_from(runs: PipelineRuns) -> None:
    event = runs.last_materialisation("assignments", ["3|s000001"])
    tags = event.tags or {}
    assert tags["dagster/code_version"] == runs.builder.code_version(runs.asset("assignments"))
    assert tags["dagster/input_data_version/toy/precomputed/embeddings"] == runs.data_version("embeddings", "s000001")
    assert tags["dagster/input_data_version/toy/precomputed/centroids"] == runs.data_version("centroids", "3")
    assigned = record(runs, "assignments", "3|s000001")
    assert tags["dagster/data_version"] == assigned.version
    assert assigned.inputs == {
        "embeddings": record(runs, "embeddings", "s000001").version,
        "centroids": record(runs, "centroids", "3").version,
    }


def test_a_refresh_reports_each_asset_as_it_is_done(unmade: PipelineRuns) -> None:
    assets = iter(refresh(unmade.pipeline, unmade.instance, graph=unmade.graph))
    before = unmade.last_record
    assert next(assets).asset == "items"
    assert unmade.materialised_since(before) == {"items": SHARDS}
