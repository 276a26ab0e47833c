"""A run on a local cluster of several nodes: a node is killed in mid-run; and how the rate grows with the workers.

    python benchmarks/cluster.py kill
    python benchmarks/cluster.py scale --photographs FOLDER

kill: a cluster of three nodes by Ray's own test utility, the head without processors, two with one each; one of these is
killed with SIGKILL when the first blocks are done. The store has to equal, byte by byte, that of one process.
scale: the same photographs with 1 and with 2 workers of one thread each; the time from the first finished block to the
last, which leaves out how long Ray and the workers take to start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import relprop
from relprop.run import Tally

SAMPLES = 96


class Items(Dataset[Any]):
    """Random pictures that take a while to read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.05)
        return torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(number)), number % 3


def network() -> nn.Module:
    """A small network."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*layers).eval()


def files(store: Path) -> dict[str, bytes]:
    """What a store consists of."""
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def kill(folder: Path) -> bool:
    """Whether a run that loses a node comes to the same store."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    options: dict[str, Any] = {"target": "true", "batch": 2, "block": 4, "threads": 1, "command": "c"}
    relprop.run(network(), Items(), folder / "one", **options)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    seen: list[float] = []

    def progress(added: Tally) -> None:
        seen.append(time.perf_counter())
        if len(seen) == 6:
            cluster.remove_node(doomed, allow_graceful=False)

    try:
        found = relprop.run(
            network(), Items(), folder / "two", ray=cluster.address, workers=2, progress=progress, **options
        )
    finally:
        cluster.shutdown()
    same = files(folder / "one") == files(folder / "two")
    print(
        f"a node killed after {6 * 4} of {SAMPLES} samples: {found.done} explained, the store is {'equal' if same else 'DIFFERENT'}"
    )
    return same and found.done == SAMPLES


def scale(folder: Path, photographs: Path, count: int) -> dict[str, float]:
    """Samples a second with 1 and 2 workers."""
    paths = [str(path) for path in sorted(photographs.glob("*.jpg"))[:count]]
    rates = {}
    for workers in (1, 2):
        times: list[tuple[float, int]] = []

        def progress(added: Tally, times: list[tuple[float, int]] = times) -> None:
            times.append((time.perf_counter(), added.done + added.failed))

        started = time.perf_counter()
        relprop.run(
            "demo",
            paths,
            folder / str(workers),
            ray="local",
            workers=workers,
            progress=progress,
            batch=4,
            block=4,
            threads=1,
        )
        done = sum(size for _, size in times[workers:])
        rates[f"{workers} workers"] = done / (times[-1][0] - times[workers - 1][0])
        print(
            f"{workers} workers: {rates[f'{workers} workers']:.2f} samples/s, {time.perf_counter() - started:.0f} s with the start"
        )
    same = files(folder / "1") == files(folder / "2")
    print(
        f"2 workers over 1: {rates['2 workers'] / rates['1 workers']:.2f}; the stores are {'equal' if same else 'DIFFERENT'}"
    )
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kill", "scale"))
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        if asked.what == "kill":
            return 0 if kill(Path(place)) else 1
        if asked.photographs is None:
            parser.error("scale needs --photographs FOLDER")
        rates = scale(Path(place), asked.photographs, asked.count)
    if asked.json:
        asked.json.write_text(json.dumps({"rates": rates, "processors": os.cpu_count()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
