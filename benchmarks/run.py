"""What a run costs beside the bare explainer: reading, explaining and writing overlap.

    python benchmarks/run.py --photographs FOLDER

Both do the same photographs with the same batches in one process, turn by turn: the explainer from inputs that are ready in
memory, the run from files to a store on disk. Printed is the median of the rounds' ratios (the run's throughput over the
explainer's) and its target, 0.90; and the same of the processor's time, which is what is left where no processor is idle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import relprop
from relprop.data import open_photograph, photographs_in
from relprop.models import load
from relprop.run import Recipe, Task, begin, finish, prepared, tried

TARGET = 0.90


def clocks() -> torch.Tensor:
    """Seconds on the wall, and of all threads on processors."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def bare(task: Task, batches: list[torch.Tensor]) -> torch.Tensor:
    """What the explainer takes for inputs in memory."""
    started = clocks()
    for batch in batches:
        task.explainer(batch)
    return clocks() - started


def whole(task: Task, trial: Any, place: Path) -> torch.Tensor:
    """What a run takes from the files to a finished store; the trial, which a long run forgets, is left out."""
    shutil.rmtree(place, ignore_errors=True)
    with begin(task, place, trial=trial) as begun:
        started = clocks()
        finish(begun)
        return clocks() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reduce", default="none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    loaded = load(asked.model)
    files = photographs_in([asked.photographs])[: asked.count]
    recipe = Recipe(
        loaded, [str(f) for f in files], batch=asked.batch, reduce=asked.reduce, dtype=asked.dtype
    )
    task = prepared(recipe)
    trial = tried(task)
    how = loaded.preprocessing
    ready = torch.stack([how.tensor(how.crop(open_photograph(file))) for file in files])
    batches = list(ready.split(asked.batch))
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.rounds):
            before, run, after = (
                bare(task, batches),
                whole(task, trial, Path(folder) / "s"),
                bare(task, batches),
            )
            explainer = (before + after) / 2
            ratio, processor = (explainer / run).tolist()
            rates = {"explainer": len(files) / float(explainer[0]), "run": len(files) / float(run[0])}
            rows.append({**rates, "ratio": ratio, "processor": processor})
            print(
                f"explainer {rates['explainer']:.2f}/s, run {rates['run']:.2f}/s, ratio {ratio:.3f}, of processor time {processor:.3f}",
                flush=True,
            )
        stored = sum(file.stat().st_size for file in (Path(folder) / "s").rglob("*") if file.is_file())
    ratio, processor = (statistics.median(row[name] for row in rows) for name in ("ratio", "processor"))
    verdict = "met" if ratio >= TARGET else "missed"
    print(
        f"{loaded.name}, {len(files)} photographs, batches of {asked.batch}, {torch.get_num_threads()} threads:"
        f" ratio {ratio:.3f}, target {TARGET} {verdict}; of processor time {processor:.3f}; {stored / len(files) / 1000:.0f} kB a sample"
    )
    if asked.json:
        told = {
            "versions": {"relprop": relprop.__version__, "torch": torch.__version__},
            "ratio": ratio,
            "rounds": rows,
        }
        asked.json.write_text(json.dumps(told, indent=2))
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
