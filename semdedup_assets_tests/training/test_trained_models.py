"""Models for each kept set and its baselines: what is trained, what is trained again, and what a kill costs."""

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semdedup_assets.compute import Compute, WorkerResources
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets.training.evaluation_data import MissingEvaluationDataError
from semdedup_assets.training.trained_models import TRAINED_MODELS
from semdedup_assets.training.trainer_process import DivergedError, KilledError, TrainingFailedError
from semdedup_assets.training.training_runs import named_files, work_folder
from semdedup_assets_tests.stage_runs import StageRuns, record_path
from semdedup_assets_tests.training.training_pipelines import (
    TRAINER,
    copied,
    training,
    training_command,
    with_manifests,
)

KEY = "0.1|2"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    return with_manifests(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def runs(prepared: StageRuns, tmp_path: Path) -> StageRuns:
    return copied(prepared, tmp_path)


def model(runs: StageRuns, stage: str, run: str, key: str = KEY) -> dict[str, Any]:
    record = runs.record(stage, key)
    return json.loads(record.file(f"{run}/checkpoint/weights.json").content())


def kept_keys(runs: StageRuns) -> list[str]:
    return runs.kept_keys(KEY)


def test_each_budget_and_seed_is_a_model_of_the_manifest(runs: StageRuns) -> None:
    runs = runs.changed(training=training(budget=["epochs", "steps"]))
    (record,) = runs.make("trained_models")
    everything = record.details["everything"]
    kept = kept_keys(runs)
    assert record.details["kept"] == len(kept) < everything
    names = {"epochs-seed0", "epochs-seed1", "steps-seed0", "steps-seed1"}
    assert {name.partition("/")[0] for name in record.files} == names
    for run in record.details["runs"]:
        found = model(runs, "trained_models", f"{run['budget']}-seed{run['seed']}")
        items = len(kept) if run["budget"] == "epochs" else everything
        assert found == {"keys": kept, "seed": str(run["seed"]), "items": str(items)}
        assert (run["steps"], run["kept"]) == (6, len(kept))
    # The curve is what the trainer printed, the log what it printed in full.
    curve = json.loads(record.file("epochs-seed0/curve.json").content())
    assert [point["loss"] for point in curve] == [5.0 / step for step in range(1, 7)]
    assert record.file("epochs-seed0/trainer.log").content().count(b"loss") == 6
    assert not runs.stale("trained_models")
    shown = runs.context().graph["trained_models"].shown(runs.context(), Partition.parse(KEY, ("epsilon", "k")), record)
    assert list(shown) == ["training", "runs"]


def test_baselines_are_trained_on_their_own_manifests(runs: StageRuns) -> None:
    (everything,) = runs.make("everything_trained_models")
    (exact,) = runs.make("exact_trained_models")
    whole = model(runs, "everything_trained_models", "epochs-seed0", "")["keys"]
    assert len(whole) == everything.details["kept"] == everything.details["everything"] > exact.details["kept"]
    assert set(model(runs, "exact_trained_models", "epochs-seed0", "")["keys"]) <= set(whole)


@pytest.mark.parametrize("baseline", ["random", "sized_random"])
def test_each_seed_of_a_random_baseline_has_a_choice_of_its_own(runs: StageRuns, baseline: str) -> None:
    runs = runs.changed(training=training(seeds=4))
    (record,) = runs.make(f"{baseline}_trained_models")
    chosen = [model(runs, f"{baseline}_trained_models", f"epochs-seed{seed}")["keys"] for seed in range(4)]
    # Three draws are the default: the fourth model has the next.
    assert [run["draw"] for run in record.details["runs"]] == [0, 1, 2, 3]
    assert len({tuple(keys) for keys in chosen}) == 4
    assert [run["kept"] for run in record.details["runs"]] == [len(keys) for keys in chosen]
    if baseline == "random":
        assert {len(keys) for keys in chosen} == {len(kept_keys(runs))}


def test_another_seed_trains_itself_alone(runs: StageRuns) -> None:
    runs.make("trained_models")
    first = runs.record("trained_models", KEY)
    more = runs.changed(training=training(seeds=3, budget=["epochs", "steps"]))
    assert more.stale("trained_models") == [KEY]
    (second,) = more.make("trained_models", again=False)
    for name, entry in first.files.items():
        assert second.files[name] == entry, "what was trained is there as it was"
    trained = {name.partition("/")[0] for name in second.files} - {name.partition("/")[0] for name in first.files}
    assert trained == {"epochs-seed2", "steps-seed0", "steps-seed1", "steps-seed2"}
    # Fewer seeds train nothing, and what is left over is removed.
    (third,) = runs.make("trained_models", again=False)
    assert third.files == first.files
    assert not list(Path(third.location).rglob("*seed2*/*.json"))


def test_whoever_asks_for_what_is_up_to_date_has_it_trained_again(runs: StageRuns) -> None:
    (first,) = runs.make("trained_models")
    (second,) = runs.make("trained_models")
    assert {entry.path for entry in first.files.values()}.isdisjoint(entry.path for entry in second.files.values())
    assert first.version == second.version


def test_what_changes_no_model_makes_none_stale(runs: StageRuns) -> None:
    runs.make("trained_models")
    assert not runs.changed(training=training(at_once=2, against=[])).stale("trained_models")
    assert not runs.changed(evaluation={"command": "anything {checkpoint} {out}"}).stale("trained_models")
    assert runs.changed(training=training(command=training_command(more="--steps 9"))).stale("trained_models") == [KEY]


@pytest.mark.parametrize("role", ["everything", "exact", "random", "sized_random"])
def test_baselines_are_trained_by_the_workers_of_the_kept_sets(prepared: StageRuns, role: str) -> None:
    """On other devices precision may be another."""
    stage = prepared.context().graph[f"{role}_trained_models"]
    asked = Compute(workers={"trained_models": WorkerResources(num_gpus=1)})
    assert asked.workers_of(stage.name, stage.workers_of) == WorkerResources(num_gpus=1)
    own = Compute(workers={"trained_models": WorkerResources(num_gpus=1), stage.name: WorkerResources(num_cpus=2)})
    assert own.workers_of(stage.name, stage.workers_of) == WorkerResources(num_cpus=2)
    assert Compute().workers_of(stage.name, stage.workers_of) is None


def test_side_by_side_gives_the_same(runs: StageRuns) -> None:
    (first,) = runs.make("trained_models")
    (second,) = runs.changed(training=training(at_once=2)).make("trained_models")
    assert first.version == second.version


def test_a_killed_trainer_goes_on_where_it_saved(runs: StageRuns) -> None:
    dying = runs.changed(training=training(command=training_command("die"), seeds=1))
    said = list[str]()
    with reporting_to(said.append):
        (record,) = dying.make("trained_models")
    # The models are trained in threads, and yet heard.
    assert any("epochs-seed0" in line and "ended by SIGKILL" in line for line in said)
    steps = [point["step"] for point in json.loads(record.file("epochs-seed0/curve.json").content())]
    assert steps == [1, 2, 3, 4, 5, 6]
    log = record.file("epochs-seed0/trainer.log").content().decode()
    assert [log.count(f"step {step} ") for step in steps] == [1] * 6


def test_a_trainer_that_is_always_killed_fails_the_run(runs: StageRuns) -> None:
    always = runs.changed(training=training(command="sh -c 'kill -9 $$' {manifest} {out}", seeds=1))
    with pytest.raises(KilledError, match="ended by SIGKILL; out of memory"):
        always.make("trained_models")
    # What it took so far counts, when it goes on.
    work = work_folder(always.context(), TRAINED_MODELS, Partition.parse(KEY, ("epsilon", "k")))
    (seconds,) = work.rglob("seconds.json")
    assert json.loads(seconds.read_text()) > 0


def test_a_killed_run_loses_no_finished_model(runs: StageRuns, tmp_path: Path) -> None:
    """The whole process is killed in the second seed: the first is taken up, the second goes on."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = f'sh -c \'python "{TRAINER}" --manifest {{manifest}} --seed {{seed}} --items {{items}} --out {{out}}'
    waiting += f"; test {{seed}} = 0 || test -e {tmp_path}/open || echo here > {gate}; test {{seed}} = 0 || test -e {tmp_path}/open || sleep 600'"
    stopped = runs.changed(training=training(command=waiting))
    program = f"""
import json
from semdedup_assets_tests.stage_runs import StageRuns, record_path
from semdedup_assets_tests.training.training_pipelines import TRAINER, copied, training, training_command, with_manifests
from semdedup_assets.stage_graph import GRAPH
StageRuns(json.loads({json.dumps(json.dumps(stopped.settings))}), GRAPH).make("trained_models")
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    assert gate.read_text() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    work = work_folder(stopped.context(), TRAINED_MODELS, Partition.parse(KEY, ("epsilon", "k")))
    assert sorted(path.parent.name.partition("-seed")[2][0] for path in work.rglob("done.json")) == ["0"]
    (tmp_path / "open").touch()
    (record,) = stopped.make("trained_models")
    assert record.details["models"] == 2
    # The seed that was finished was not begun again.
    assert record.file("epochs-seed0/trainer.log").content().count(b"step 1 ") == 1
    assert not list(work.iterdir())


def test_a_diverging_trainer_is_named(runs: StageRuns) -> None:
    diverging = runs.changed(training=training(command=training_command("diverge")))
    with pytest.raises(DivergedError, match=r"trained_models 0\.1\|2 epochs-seed0: the loss is not finite"):
        diverging.make("trained_models")


def test_a_trainer_that_leaves_nothing_is_named(runs: StageRuns) -> None:
    idle = runs.changed(training=training(command=training_command("nothing")))
    with pytest.raises(TrainingFailedError, match="left no file in"):
        idle.make("trained_models")


def test_a_device_that_is_not_there_is_named_before_anything_is_trained(runs: StageRuns) -> None:
    asked = runs.changed(compute={"device": "cuda:7"})
    with pytest.raises(ValueError, match=r"device 'cuda:7' cannot be used .*use `auto` or one of cpu"):
        asked.make("trained_models")


def test_evaluation_data_that_is_not_there_is_named_before_anything_is_trained(runs: StageRuns, tmp_path: Path) -> None:
    asked = runs.changed(evaluation={"bits_per_byte": {"debian": str(tmp_path / "nothing.jsonl")}})
    with pytest.raises(FileNotFoundError, match=r"evaluation\.bits_per_byte\.debian: .*nothing\.jsonl"):
        asked.make("trained_models")
    assert not (Path(asked.settings["store"]) / "training").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", "it is empty"), ('{"content": "some words"}\n', "text"), ("no JSON\n" * 3, "JSON")],
    ids=["empty", "another field", "no JSON"],
)
def test_evaluation_data_of_no_use_are_named_before_anything_is_trained(
    runs: StageRuns, tmp_path: Path, lines: str, message: str
) -> None:
    (tmp_path / "set.jsonl").write_text(lines)
    asked = runs.changed(evaluation={"bits_per_byte": {"debian": str(tmp_path / "set.jsonl")}})
    with pytest.raises(MissingEvaluationDataError, match=rf"bits_per_byte\.debian: nothing .*{message}"):
        asked.make("trained_models")


def test_a_work_folder_that_cannot_be_written_is_named(runs: StageRuns, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked = runs.changed(training=training(work_folder=str(tmp_path / "file")))
    with pytest.raises(OSError, match=r"name another folder in `training\.work_folder`: '.*/file/"):
        asked.make("trained_models")


def test_seeds_that_fail_differently_are_all_told(runs: StageRuns) -> None:
    failing = runs.changed(
        training=training(command="sh -c 'echo the reason of {seed}; exit $((3 + {seed}))' {manifest} {out}")
    )
    lines: list[str] = []
    with reporting_to(lines.append), pytest.raises(TrainingFailedError, match="exit code 3"):
        failing.make("trained_models")
    assert any("seed1" in line and "exit code 4" in line for line in lines)


def test_a_manifest_that_changed_makes_models_stale_and_is_required(runs: StageRuns) -> None:
    runs.make("trained_models")
    changed = runs.changed(manifests=["parquet"])
    with pytest.raises(MissingResultError, match=r"materialise .*/manifests"):
        changed.make("trained_models")
    assert not changed.stale("trained_models")
    changed.make("manifests")
    assert changed.stale("trained_models") == [KEY]


def test_all_draws_are_trained_anew_where_their_manifest_changed(runs: StageRuns) -> None:
    (first,) = runs.make("random_trained_models")
    changed = runs.changed(manifests=["parquet"])
    changed.make("random_manifests")
    (second,) = changed.make("random_trained_models", again=False)
    identities = [[run["identity"] for run in record.details["runs"]] for record in (first, second)]
    assert all(before != after for before, after in zip(*identities, strict=True))


@pytest.mark.parametrize("command", ["python {path}", "train --config={path}"])
def test_a_file_counts_wherever_a_command_names_it(tmp_path: Path, command: str) -> None:
    path = tmp_path / "train.py"
    path.write_text("1")
    named = command.format(path=path)
    before = named_files(named)
    assert list(before) == [str(path)]
    path.write_text("2")
    assert named_files(named) != before


@pytest.mark.parametrize(
    "command", [f"bash -c '{'true; ' * 2000}'", "train ~nobody-of-this-name/x", 'echo "it\'s" a=b=']
)
def test_a_command_that_names_no_file_has_none(command: str) -> None:
    assert named_files(command) == {}


def test_another_script_is_another_command(runs: StageRuns, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINER.read_text())
    own = runs.changed(training=training(command=training_command().replace(str(TRAINER), str(script))))
    own.make("trained_models")
    assert not own.stale("trained_models")
    script.write_text(script.read_text() + "\n# mended\n")
    assert own.stale("trained_models") == [KEY]


def test_what_another_setting_left_is_not_removed(runs: StageRuns) -> None:
    """A long training that was stopped can be gone on with after a short one was tried."""
    work = work_folder(runs.context(), TRAINED_MODELS, Partition.parse(KEY, ("epsilon", "k")))
    (work / "epochs-seed0-0123456789abcdef").mkdir(parents=True)
    runs.make("trained_models")
    assert [path.name for path in work.iterdir()] == ["epochs-seed0-0123456789abcdef"]


def test_the_check_holds_equal_steps_against_everything(runs: StageRuns) -> None:
    both = runs.changed(training=training(budget="steps"))
    both.make("everything_trained_models")
    both.make("trained_models")

    def problems(of: StageRuns) -> list[str]:
        context = of.context()
        checks = {check.name: check for check in context.graph["trained_models"].checks}
        return [each.measured for each in checks["equal_budgets"].evaluate(context).problems]

    assert problems(both) == []
    # The toy takes as many steps as it is told.
    other = both.changed(training=training(budget="steps", command=training_command(more="--steps 4")))
    other.make("trained_models")
    everything = other.record("everything_trained_models")
    changed = other.changed(training=training(budget="steps", command=training_command(more="--steps 4")))
    changed.make("everything_trained_models")
    assert problems(changed) == []
    record = record_path(changed.record("everything_trained_models"))
    record.write_bytes(
        replace(everything, code_version=changed.record("everything_trained_models").code_version).to_json()
    )
    assert problems(changed) == ["4 steps where everything took 6"]


def test_checks_ask_for_three_seeds_and_known_steps(runs: StageRuns) -> None:
    silent = runs.changed(training=training(command="cp -r {manifest}/parquet {out}/", seeds=1))
    silent.make("trained_models")
    context = silent.context()
    found = {check.name: check.evaluate(context) for check in context.graph["trained_models"].checks}
    assert "no spread can be told" in found["at_least_three_seeds"].problems[0].measured
    assert "did not say how many steps" in found["equal_budgets"].problems[0].measured


def test_the_run_hears_of_each_training(runs: StageRuns) -> None:
    lines: list[str] = []
    with reporting_to(lines.append):
        runs.changed(training=training(at_once=2)).make("trained_models")
    assert sum("trained in" in line for line in lines) == 2


def test_ending_the_run_ends_its_trainers(runs: StageRuns, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = runs.changed(
        training=training(command=f"sh -c 'echo $$ > {gate}; exec sleep 600' {{manifest}} {{out}}", seeds=1)
    )
    program = f"""
import json, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from semdedup_assets_tests.stage_runs import StageRuns, record_path
from semdedup_assets.stage_graph import GRAPH
StageRuns(json.loads({json.dumps(json.dumps(waiting.settings))}), GRAPH).make("trained_models")
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    trainer = os.pidfd_open(int(gate.read_text()))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert select.select([trainer], [], [], 60)[0]
    os.close(trainer)
