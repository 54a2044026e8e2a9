"""A trainer of a moment: its model is what it was trained on. It saves as it goes, and can be told to die or to diverge.

Run by `python toy_trainer.py --manifest … --seed … --items … --out …`.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import polars as pl

STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("manifest", "seed", "items", "out", "steps", "mode"):
        parser.add_argument(f"--{name}", default="")
    told = parser.parse_args()
    out, state = Path(told.out), Path(told.out, "state")
    state.mkdir(exist_ok=True)
    saved = state / "step"
    start = int(saved.read_text()) if saved.exists() else 0
    for step in range(start + 1, int(told.steps or STEPS) + 1):
        loss = float("nan") if told.mode == "diverge" else 5.0 / step
        sys.stdout.write(f"step {step} loss: {loss} lr: {0.1 * (1 - step / STEPS)}\n")
        sys.stdout.flush()
        saved.write_text(str(step))
        if told.mode == "die" and start == 0 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    if told.mode != "nothing":
        keys = [
            key
            for path in sorted(Path(told.manifest, "parquet").glob("*.parquet"))
            for key in pl.read_parquet(path)["key"]
        ]
        (out / "weights.json").write_text(json.dumps({"keys": keys, "seed": told.seed, "items": told.items}))


if __name__ == "__main__":
    main()
