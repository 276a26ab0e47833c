"""How long a spectral relevance analysis takes, embedding included, and how much memory: a process a case.

    python benchmarks/analyse.py                                 # 50,000 maps of 32 × 32, one class
    python benchmarks/analyse.py --samples 100000 200000 --side 16
    python benchmarks/analyse.py --samples 1000000 --side 16     # five minutes of a processor
    python benchmarks/analyse.py --samples 5000 10000 --side 16 --corelay FOLDER/bin/python

The last also times CoRelAy's spectral clustering of the same maps, without an embedding, in an environment of its own, to which
`pip install corelay` brought it; it is under a licence of its own and no part of relprop.

The maps are of one class (the hardest case: graph, spectrum and embedding of all of them at once), made of eight strategies,
of which each sample mixes two, and noise; 5 % have a mark. The exit status is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TARGETS = {(50_000, 32): (120.0, 2.0), (1_000_000, 16): (2400.0, 12.0)}
"""From samples and side to seconds and GiB."""


def maps(samples: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Relevance (samples, side, side) float32 and which maps have a mark."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    spots = random.uniform(0.2, 0.8, (8, 4, 2))
    strategies = np.stack(
        [sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.006) for a, b in group) for group in spots]
    ).astype(np.float32)
    found = np.empty((samples, side, side), dtype=np.float32)
    marked = random.random(samples) < 0.05
    for start in range(0, samples, 10_000):
        count = min(10_000, samples - start)
        mix = np.zeros((count, 8), dtype=np.float32)
        rows = np.arange(count)
        mix[rows, random.integers(8, size=count)] = 1
        mix[rows, random.integers(8, size=count)] += random.random(count, dtype=np.float32) * 0.5
        part = np.einsum("nk,khw->nhw", mix, strategies, optimize=True)
        part *= random.gamma(4, 0.25, part.shape).astype(np.float32)
        part += random.normal(scale=0.03, size=part.shape).astype(np.float32)
        edge = side // 8
        part[marked[start : start + count], -edge:, :edge] += 0.8
        found[start : start + count] = part
    return found, marked


CORELAY = """
import json, resource, sys, time
import numpy as np
from corelay.pipeline.spectral import SpectralClustering
from corelay.processor.clustering import KMeans
from corelay.processor.embedding import EigenDecomposition
from corelay.processor.flow import Parallel
maps = np.load(sys.argv[1])
maps = maps.reshape(len(maps), -1)
wall, processor = time.perf_counter(), time.process_time()
SpectralClustering(
    embedding=EigenDecomposition(n_eigval=32),
    clustering=Parallel([KMeans(n_clusters=k) for k in range(2, 11)], broadcast=True, is_output=True),
)(maps)
wall, processor = time.perf_counter() - wall, time.process_time() - processor
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": round(wall, 1), "processor_seconds": round(processor, 1), "peak_gib": round(peak, 2)}))
"""


def by_corelay(python: str, samples: int, side: int) -> dict[str, object]:
    """CoRelAy's time and memory for the same maps, by the interpreter of an environment that has it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "maps.npy"
        np.save(file, maps(samples, side)[0])
        done = subprocess.run([python, "-c", CORELAY, file], stdout=subprocess.PIPE, text=True, check=True)
    return {"samples": samples, "side": side, "by": "CoRelAy", **json.loads(done.stdout.splitlines()[-1])}


def case(samples: int, side: int, embedding: str) -> dict[str, object]:
    """One analysis in this process."""
    sys.path.pop(0)  # this folder, whose coverage.py would stand for the package of that name
    from relprop.analyse import spray

    relevance, marked = maps(samples, side)
    before, processor = time.perf_counter(), time.process_time()
    analysis = spray(relevance, embedding=embedding)
    wall, cpu = time.perf_counter() - before, time.process_time() - processor
    _, first = analysis.suspects[0]
    hits = marked[first.rows].sum()
    return {
        "samples": samples,
        "side": side,
        "embedding": embedding,
        "seconds": round(wall, 1),
        "processor_seconds": round(cpu, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "clusters": analysis[0].clusters_number,
        "suspicion": round(first.suspicion, 2),
        "precision": round(float(hits / max(first.size, 1)), 3),
        "recall": round(float(hits / marked.sum()), 3),
    }


def told(found: dict[str, object]) -> str:
    """The figures of a case in one line."""
    return ", ".join(f"{name} {value}" for name, value in found.items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--embedding", default="umap")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--corelay", metavar="PYTHON", help="an interpreter that has CoRelAy")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(case(asked.samples[0], asked.side, asked.embedding)))
        return 0
    results, missed = [], False
    for samples in asked.samples:
        command = [sys.executable, __file__, "--here", "--samples", str(samples), "--side", str(asked.side)]
        done = subprocess.run(
            [*command, "--embedding", asked.embedding], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        results.append(found)
        target = TARGETS.get((samples, asked.side))
        verdict = ""
        if target is not None:
            met = found["seconds"] <= target[0] and found["peak_gib"] <= target[1]
            missed |= not met
            verdict = f"; target {target[0]:.0f} s and {target[1]:g} GiB: {'met' if met else 'MISSED'}"
        print(f"{told(found)}{verdict}", flush=True)
        if asked.corelay:
            results.append(by_corelay(asked.corelay, samples, asked.side))
            print(told(results[-1]), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
