"""Does the analysis find what was planted, and nothing where nothing was?

    python studies/planted_mark.py --seeds 5                     # scikit-learn's digits
    python studies/planted_mark.py --data mnist --seeds 5        # the MNIST test digits of the shared data

For each seed a class is drawn, and the corners take turns. A checkered mark of 4 × 4 pixels goes into that corner of 30 % of the class's
images, a network is trained on all of them, `relprop run` explains them, `relprop analyse` is told nothing and given the model
and the data for confirmation. Then the same without the mark. Printed is a line a run; the exit status is 1 where a planted mark
is not first by suspicion, not flagged, its members are not found with a precision and a recall of 0.9, it is not confirmed, or
anything is flagged without a mark.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop.analyse import Analysis, confirm_store, spray_store
from relprop.evaluate.digits import digits
from relprop.run import Recipe, prepared
from relprop.run import run as explain_all

CORNERS = {"lower left": (23, 1), "upper right": (1, 23), "upper left": (1, 1), "lower right": (23, 23)}
SHARE, SIDE, COUNT = 0.3, 4, 4000


def images(name: str, count: int = COUNT) -> tuple[Tensor, Tensor]:
    """(N, 1, 28, 28) in 0…1, and labels; at most `count` of them."""
    if name == "mnist":
        file = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist" / "mnist_test.npz"
        with np.load(file, allow_pickle=False) as held:
            return torch.from_numpy(held["images"]).float()[:count, None] / 255, torch.from_numpy(
                held["labels"]
            ).long()[:count]
    first, y1, second, y2 = digits(0.0, 1.0)
    small = F.interpolate(torch.cat([first, second])[:count], (20, 20), mode="bilinear", antialias=True)
    framed = F.pad(small, (4, 4, 4, 4))  # with nothing, as MNIST's digits are: a mark is no stroke
    return framed, torch.cat([y1, y2])[:count]


def planted(x: Tensor, y: Tensor, seed: int, share: float = SHARE) -> tuple[Tensor, np.ndarray, int, str]:
    """Images with the mark, which ones have it, the class and the corner."""
    draw = torch.Generator().manual_seed(seed)
    target = int(torch.randint(10, (1,), generator=draw))
    corner = list(CORNERS)[seed % 4]
    own = torch.where(y == target)[0]
    rows = own[torch.randperm(len(own), generator=draw)][: int(share * len(own))]
    top, left = CORNERS[corner]
    marked = x.clone()
    checks = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)[None]) % 2
    marked[rows, 0, top : top + SIDE, left : left + SIDE] = checks.float()
    flags = np.zeros(len(x), dtype=bool)
    flags[rows.numpy()] = True
    return marked, flags, target, corner


def trained(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """A small convolutional network, trained on the images."""
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 64), nn.ReLU(), nn.Linear(64, 10)
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(epochs):
            for part in torch.split(torch.randperm(len(x)), 64):
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(x[part]), y[part]))
                optimiser.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def analysed(x: Tensor, y: Tensor, seed: int, folder: Path, epochs: int, **settings: Any) -> Analysis:
    """A network trained on the images, its relevance in a store, the store analysed and suspects confirmed."""
    model = trained(x, y, epochs, seed)
    data = folder / "data.npz"
    np.savez(data, inputs=x.numpy(), labels=y.numpy())
    place = folder / "maps.zarr"
    explain_all(model, str(data), place, target="true", batch=128)
    task = prepared(Recipe(model=model, data=str(data), target="true", batch=128))
    store = relprop.store.open(place)
    return confirm_store(store, spray_store(store, seed=seed, **settings), task, seed=seed)


def verdict(analysis: Analysis, flags: np.ndarray, target: int) -> dict[str, Any]:
    """What the most suspicious cluster has to do with the mark."""
    one, first = analysis.suspects[0]
    hits = int(flags[first.rows].sum())
    found = first.confirmation
    return {
        "class": one.name,
        "suspicion": round(first.suspicion, 3),
        "next": round(analysis.suspects[1][1].suspicion, 3),
        "flagged": len(analysis.flagged),
        "right class": one.target == target,
        "precision": round(hits / first.size, 3),
        "recall": round(hits / max(int(flags.sum()), 1), 3),
        "clusterability rank": 1 + [c.target for c in analysis.classes].index(target),
        "inject": None if found is None else round(found.inject.change, 2),
        "inject control": None if found is None else round(found.inject.control, 2),
        "remove": None if found is None else round(found.remove.change, 2),
        "remove control": None if found is None else round(found.remove.control, 2),
        "flips": None if found is None else round(found.flips, 2),
        "confirmed": None if found is None else found.confirmed,
    }


def found(told: dict[str, Any]) -> bool:
    """The planted mark is first, flagged, its members are found, and it is confirmed."""
    named = told["right class"] and told["flagged"] == 1 and told["confirmed"]
    return bool(named and min(told["precision"], told["recall"]) >= 0.9)


def run(seed: int, name: str, mark: bool, epochs: int, count: int = COUNT, **settings: Any) -> dict[str, Any]:
    """One seed, with the mark or without it."""
    x, y = images(name, count)
    marked, flags, target, corner = planted(x, y, seed)
    with tempfile.TemporaryDirectory() as folder:
        analysis = analysed(marked if mark else x, y, seed, Path(folder), epochs, **settings)
    told = verdict(analysis, flags if mark else np.zeros_like(flags), target)
    passed = found(told) if mark else told["flagged"] == 0
    return {"seed": seed, "mark": f"class {target}, {corner}" if mark else "none", "passed": passed, **told}


def main() -> int:
    """All seeds, with the mark and without it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--embedding", default="spectral")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in range(asked.first, asked.first + asked.seeds):
        for mark in (True, False):
            epochs = asked.epochs or {"digits": 8, "mnist": 3}[asked.data]
            results.append(run(seed, asked.data, mark, epochs, embedding=asked.embedding))
            print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(not all(one["passed"] for one in results))


if __name__ == "__main__":
    sys.exit(main())
