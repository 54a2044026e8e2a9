"""A trainer as a process of its own: what it is told, what is heard of it, and how it may end."""

import os
import select
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.training.trainer_process import (
    CurvePoint,
    DivergedError,
    KilledError,
    TrainerProcess,
    TrainingFailedError,
)


def process(folder: Path, program: str, **options: object) -> TrainerProcess:
    return TrainerProcess("a model", [sys.executable, "-c", textwrap.dedent(program)], folder, **options)


def test_a_program_hears_and_reports_through_dagster_pipes(tmp_path: Path) -> None:
    program = """
        from dagster_pipes import open_dagster_pipes
        with open_dagster_pipes() as pipes:
            pipes.log.info(f"seed {pipes.get_extra('seed')}")
            pipes.report_custom_message({"steps": 2, "items": 20})
            print("loss: 77")
            pipes.report_custom_message({"step": 1, "loss": 3.5, "learning_rate": 0.1})
            pipes.report_custom_message({"step": 2, "loss": 2.5})
    """
    lines: list[str] = []
    with reporting_to(lines.append):
        reported = process(tmp_path, program, extras={"seed": 7}).run()
    # What is printed counts only where nothing is reported.
    assert [reported.curve[step] for step in (1, 2)] == [CurvePoint(1, 3.5, 0.1), CurvePoint(2, 2.5)]
    assert reported.totals == {"steps": 2, "items": 20}
    assert "a model: seed 7" in lines


@pytest.mark.parametrize(
    ("line", "point"),
    [
        (
            "2026-11-26 | INFO | Train Epoch: 0 [ 64/1364 (5%)] Data (t): 0.1 Batch (t): 0.2, 300/s LR: 0.000500 Logit Scale: "
            "14.286 Contrastive_loss: 4.1 (4.1) Loss: 4.25 (4.3)",
            CurvePoint(1, 4.25, 0.0005),
        ),
        ("{'loss': 2.31, 'grad_norm': 1.7, 'learning_rate': 5e-05, 'epoch': 0.1}", CurvePoint(1, 2.31, 5e-05)),
        ("{'loss': '2.31', 'learning_rate': '1e-4', 'epoch': '0.1'}", CurvePoint(1, 2.31, 1e-4)),
        ("step: 40, loss=1.5, lr=0.01", CurvePoint(40, 1.5, 0.01)),
        ("iter 7: loss 1, train loss: .5", CurvePoint(7, 0.5, None)),
        ("step 0 loss: 3", CurvePoint(0, 3.0)),
        ("step 12,345 loss: 3", CurvePoint(12345, 3.0)),
        ("step 5 val loss: 9.0 loss: 2.0", CurvePoint(5, 2.0)),
    ],
)
def test_what_trainers_print_is_understood(tmp_path: Path, line: str, point: CurvePoint) -> None:
    reported = process(tmp_path, f"print({line!r}); print('eval_loss: 9, val-loss: 8')").run()
    assert list(reported.curve.values()) == [point]


@pytest.mark.parametrize(
    ("printed", "losses"),
    [
        (b"\r 1% loss: 3.0\r 2% loss: 2.0\r", [3.0, 2.0]),
        (b"x" * (5 << 20) + b"\nloss: 1.5\n", [1.5]),
        (b"\xff\xfe\x00 loss: 2.5\n", [2.5]),
        (b"step 1" + b"0" * 5000 + b" loss: 2\n", [2.0]),
        (b"loss: 3.0\nloss: 2.0", [3.0, 2.0]),
    ],
    ids=["a bar", "megabytes without a line", "no text", "a number without an end", "a line without an end"],
)
def test_strange_output_ends_nothing(tmp_path: Path, printed: bytes, losses: list[float]) -> None:
    (tmp_path / "printed").write_bytes(printed)
    program = f"import shutil, sys; shutil.copyfileobj(open({str(tmp_path / 'printed')!r}, 'rb'), sys.stdout.buffer)"
    reported = process(tmp_path / "run", program).run()
    assert [point.loss for point in reported.curve.values()] == losses


@pytest.mark.parametrize(
    "wrong", ['{"loss": "high"}', '{"loss": [1]}', '{"loss": 1, "step": "3/7"}', '{"steps": "all"}']
)
def test_a_report_that_is_no_number_is_told_and_passed_over(tmp_path: Path, wrong: str) -> None:
    program = f"""
        from dagster_pipes import open_dagster_pipes
        with open_dagster_pipes() as pipes:
            for message in ({{"step": 1, "loss": 3.5}}, {wrong}, {{"step": 2, "loss": 2.5}}):
                pipes.report_custom_message(message)
    """
    lines: list[str] = []
    with reporting_to(lines.append):
        reported = process(tmp_path, program).run()
    assert [point.loss for point in reported.curve.values()] == [3.5, 2.5]
    assert not reported.totals
    assert any("passed over where it is no number" in line for line in lines)


def test_children_end_with_their_trainer(tmp_path: Path) -> None:
    """They would go on writing beside the next attempt."""
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    program = f"""
        import os, subprocess, sys
        held = os.open({str(fifo)!r}, os.O_WRONLY)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[held])
        sys.exit(3)
    """
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TrainingFailedError, match="exit code 3"):
        process(tmp_path / "run", program).run()
    # Nobody holds the other end any more.
    assert select.select([reader], [], [], 60)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_an_error_of_the_program_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailedError, match=r"exit code 3; all it printed is in .*trainer\.log") as error:
        process(tmp_path, "import sys; print('no such column'); sys.exit(3)").run()
    assert "no such column" in str(error.value)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailedError, match="no-such-trainer: cannot be run"):
        TrainerProcess("a model", ["no-such-trainer", "--fast"], tmp_path).run()


def test_a_killed_program_is_told_apart_from_a_failed_one(tmp_path: Path) -> None:
    with pytest.raises(KilledError, match="SIGKILL; out of memory"):
        process(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").run()


def test_a_shell_whose_trainer_was_killed_is_one_that_was_killed(tmp_path: Path) -> None:
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(KilledError, match="SIGKILL; out of memory"):
        TrainerProcess("a model", ["sh", "-c", f"{shlex.join(killed)}; exit $?"], tmp_path).run()


@pytest.mark.parametrize("after", ["raise SystemExit", "import time; time.sleep(600)"])
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, after: str) -> None:
    program = f"""
        for step in range(1, 5):
            print(f"step {{step}} loss: nan lr: 0.5")
        {after}
    """
    with pytest.raises(DivergedError, match=r"learning rate 0\.5: the training diverged"):
        process(tmp_path, program).run()


def test_a_single_loss_that_is_not_finite_on_the_way_ends_nothing(tmp_path: Path) -> None:
    reported = process(tmp_path, "print('loss: inf'); print('loss: 2.0')").run()
    assert reported.last == CurvePoint(2, 2.0)


def test_the_curve_goes_over_all_attempts(tmp_path: Path) -> None:
    program = """
        import os, pathlib, signal
        from dagster_pipes import open_dagster_pipes
        with open_dagster_pipes() as pipes:
            start = 3 if pipes.retry_number else 1
            for step in range(start, start + 3):
                pipes.report_custom_message({"step": step, "loss": 10.0 * (pipes.retry_number + 1) + step})
            if not pipes.retry_number:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    trainer = process(tmp_path, program)
    with pytest.raises(KilledError):
        trainer.run()
    reported = trainer.run()
    # What a later attempt says of a step counts.
    assert {step: point.loss for step, point in reported.curve.items()} == {1: 11, 2: 12, 3: 23, 4: 24, 5: 25}


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "messages-0.jsonl").write_text('{"method": "report_custom_message", "params": {"pay')
    assert process(tmp_path, "print('loss: 1')").run().last == CurvePoint(1, 1.0)


def test_two_attempts_never_work_in_one_folder(tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    program = f"open({str(fifo)!r}, 'w').write('here'); open({str(fifo)!r}).read()"
    follower = f"""
        from pathlib import Path
        from semdedup_assets.training.trainer_process import TrainerProcess
        TrainerProcess("a model", {[sys.executable, "-c", program]!r}, Path({str(tmp_path)!r})).run()
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(follower)], stderr=subprocess.PIPE)
    assert fifo.read_text() == "here"
    with pytest.raises(TrainingFailedError, match="an earlier attempt still runs"):
        process(tmp_path, "print('loss: 1')").run()
    fifo.write_text("go on")
    assert first.wait() == 0, first.stderr.read() if first.stderr else ""
    if first.stderr:
        first.stderr.close()
    assert process(tmp_path, "print('loss: 1')").run().last == CurvePoint(1, 1.0)


def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    fifo, note = tmp_path / "gate", tmp_path / "pid"
    os.mkfifo(fifo)
    program = f"import os; open({str(note)!r}, 'w').write(str(os.getpid())); open({str(fifo)!r}, 'w').write('x'); os.read(0, 1)"
    program += "; import signal; signal.pause()"
    follower = f"""
        from pathlib import Path
        from semdedup_assets.training.trainer_process import TrainerProcess
        TrainerProcess("a model", {[sys.executable, "-c", program]!r}, Path({str(tmp_path / "run")!r})).run()
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(follower)])
    assert fifo.read_text() == "x"
    trainer = os.pidfd_open(int(note.read_text()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    # The descriptor becomes readable when the program is gone.
    assert select.select([trainer], [], [], 60)[0]
    os.close(trainer)


@pytest.mark.parametrize(("set_before", "threads", "found"), [(None, 3, "3"), ("5", 3, "5"), (None, None, "")])
def test_threads_are_those_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_before: str | None, threads: int | None, found: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    trainer = process(tmp_path, "import os; print(os.environ.get('OMP_NUM_THREADS', ''))", threads=threads)
    trainer.run()
    assert trainer.log.read_text() == f"{found}\n"


def test_losses_without_a_step_are_counted_and_are_no_steps(tmp_path: Path) -> None:
    reported = process(tmp_path, "print('Loss: 3.0 LR: 0.1'); print('Loss: 2.0 LR: 0.1')").run()
    assert [point.loss for point in reported.curve.values()] == [3.0, 2.0]
    assert not reported.numbered


def test_steps_from_0_are_steps(tmp_path: Path) -> None:
    reported = process(tmp_path, "print('step 0 loss: 3.0'); print('step 1 loss: 2.0')").run()
    assert reported.numbered
    assert {step: point.loss for step, point in reported.curve.items()} == {0: 3.0, 1: 2.0}


def test_what_a_program_prints_that_trains_nothing_is_no_loss(tmp_path: Path) -> None:
    program = "[print('loss: nan') for _ in range(5)]; import os; os.kill(os.getpid(), 9)"
    with pytest.raises(KilledError, match=r"SIGKILL; out of memory.*; run again$"):
        process(tmp_path, program, trains=False).run()


def test_a_launcher_is_asked_to_end_its_workers(tmp_path: Path) -> None:
    """One that has a worker in a session of its own, as torchrun has, passes the signal on."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = f"""
        import signal, subprocess, sys
        worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
        signal.signal(signal.SIGTERM, lambda *_: (worker.kill(), sys.exit(1)))
        open({str(gate)!r}, "w").write(str(worker.pid))
        for _ in range(3):
            print("loss: nan", flush=True)
        worker.wait()
    """
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(os.pidfd_open(int(gate.read_text()))))
    reader.start()
    with pytest.raises(DivergedError):
        process(tmp_path / "run", program).run()
    reader.join()
    assert select.select([found[0]], [], [], 60)[0]
    os.close(found[0])
