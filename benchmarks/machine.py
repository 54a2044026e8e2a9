"""What a benchmark ran on, so that its figures can be read: prints the processor's own rates.

python benchmarks/machine.py
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from semdedup_assets.algorithm.prefilter import integers_are_fast

_SHAPE = (1024, 512, 2048)


def least_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """The least of several times."""
    return min(timed(work) for _ in range(repeats))


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rates() -> dict[str, float]:
    """Rates of a product of matrices, in 10⁹ multiplications and additions a second."""
    rows, inner, columns = _SHAPE
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    codes = [(part * 30).clamp(-127, 127).to(torch.int8) for part in (left, right)]
    halves = [part.bfloat16() for part in (left, right)]
    products: dict[str, Callable[[], object]] = {
        "float32": lambda: left @ right.T,
        "bfloat16": lambda: halves[0] @ halves[1].T,
        "int8": lambda: torch._int_mm(codes[0], codes[1].T),
    }
    return {name: round(2 * rows * inner * columns / least_seconds(work) / 1e9, 1) for name, work in products.items()}


def machine() -> dict[str, Any]:
    """Processor, threads, versions and rates."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "by default"),
        "units": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "screening": integers_are_fast(),
        "gflops": rates(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    print(machine())
