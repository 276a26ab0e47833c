"""A small store and its analysis, with a planted strategy: what the report and the browser are shown in their tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relprop.analyse import Analysis, ClassAnalysis, Cluster, Confirmation, Effect, Evidence, Place
from relprop.store import Store, write_store

NAMES = ("cat", "dog <script>alert(1)</script>", "horse & rider")
MARK = Place(0.75, 0.0, 1.0, 0.25)
PLAN = [
    {"name": f"conv_{i}", "operation": "aten.convolution.default", "kind": "conv", "module": f"features.{i}",
     "module_class": "Conv2d", "source": f"net.py:{i}", "shape": "[B, 8, 16, 16]", "rule": rule, "why": "preset"}
    for i, rule in enumerate(["ZBox(low=0, high=1)", "Gamma(gamma=0.25)", "Gamma(gamma=0.25)", "Epsilon(epsilon=1e-06)"])
]  # fmt: skip


@dataclass(frozen=True)
class Horses:
    """What the tests of the report and of the browser's server look at: nothing may change it."""

    store: Store
    analysis: Analysis


def made_store(
    path: Path,
    count: int = 240,
    side: int = 16,
    *,
    kind: str = "image",
    seed: int = 0,
    fingerprint: str = "3f9a0c",
    method: str | None = "lrp",
) -> Store:
    """A store of `count` samples of three classes; a third of the horses have relevance in the lower left corner."""
    draw = np.random.default_rng(seed)
    label = np.arange(count) % 3
    target = label.copy()
    target[::20] = (target[::20] + 1) % 3  # some mistakes
    rows, columns = np.mgrid[0:side, 0:side] / side
    centre = np.array([[0.3, 0.3], [0.5, 0.6], [0.4, 0.5]])[target]
    spread = (rows - centre[:, :1, None]) ** 2 + (columns - centre[:, 1:, None]) ** 2
    relevance = np.exp(-30 * spread) + 0.15 * draw.normal(size=(count, side, side))
    photo = np.clip(200 * np.exp(-12 * spread) + 40 + 8 * draw.normal(size=spread.shape), 0, 255)
    marked = (target == 2) & (np.arange(count) % 9 < 3)
    low = slice(int(0.75 * side), side)
    relevance[marked, low, : side // 4] += 2.0
    thumbnail = np.stack([photo, photo * 0.8, 0.6 * photo + 40], -1).astype(np.uint8)
    thumbnail[marked, low, : side // 4] = 255
    output = draw.normal(size=(count, 3))
    output[np.arange(count), target] += 4
    status = np.ones(count)
    reason = [""] * count
    for i in (7, 11):
        status[i], reason[i] = 2, "the file is empty"
        relevance[i] = np.nan
    whole: dict[str, Any] = {"relevance": relevance[:, None].astype(np.float32), "thumbnail": thumbnail}
    if kind != "image":
        whole = {"relevance": relevance[:, side // 2].astype(np.float32)}
    return write_store(
        path,
        output=output,
        target=target,
        label=label,
        gap=draw.normal(size=count) * 1e-7,
        id=[f"photos/{i:05d}.jpg" for i in range(count)],
        status=status,
        reason=reason,
        kind=kind,
        classes=NAMES,
        attributes={
            "plan": PLAN,
            "model": {"name": "tiny network", "weights": "trained by the test", "fingerprint": fingerprint},
            "versions": {"relprop": "0.1.0", "torch": "2.14.1"},
            "command": "relprop run --model tiny --data photos --store horses",
            **({} if method is None else {"method": method}),
        },
        **whole,
    )


def made_analysis(store: Store, *, confirmed: bool = True) -> Analysis:
    """An analysis of the store as `spray` would have it, made by hand: the planted strategy comes first."""
    draw = np.random.default_rng(1)
    target, label, done = store.column("target"), store.column("label"), store.done
    whole = np.nan_to_num(store.relevance[:].reshape(len(store), -1, store.relevance.shape[-1]))
    maps = whole / np.abs(whole).sum((1, 2), keepdims=True).clip(1e-9)
    maps = maps if store.kind == "image" else maps[:, 0]
    classes = []
    for c, count in ((2, 3), (0, 2), (1, 1)):
        rows = np.flatnonzero((target == c) & done)
        planted = (rows % 9 < 3) if c == 2 else np.zeros(len(rows), bool)
        labels = (
            np.where(planted, 0, 1 + np.arange(len(rows)) % max(1, count - 1))
            if c == 2
            else np.arange(len(rows)) % count
        )
        corner = np.array([[0, 0], [5, 1], [3, 6]])[labels]
        embedding = (corner + draw.normal(size=(len(rows), 2)) * 0.7).astype(np.float32)
        clusters = tuple(
            _cluster(c, k, rows, labels == k, maps, c == 2 and k == 0, confirmed) for k in range(count)
        )
        values = np.linspace(0, 0.9, 12) ** 0.5
        values[:count] = np.linspace(0, 0.02, count)
        classes.append(
            ClassAnalysis(
                c, NAMES[c], rows, values, count, count, {count: labels}, embedding,
                np.zeros((len(rows), 12), np.float32), 40.0 / (1 + c % 2 + c % 3),
                {"eigenvalue_2_z": -6.1, "clusterability_z": 8.0 / (1 + c)}, clusters, maps[rows].mean(0).astype(np.float32),
                float((label[rows] == c).mean()),
            )
        )  # fmt: skip
    return Analysis(
        tuple(classes),
        {5: "3 samples, at least 20 are needed"},
        {"pooling": 16, "neighbours": 10, "seed": 0},
        {"store": str(store.path), "samples": len(store)},
    )


def _cluster(c: int, k: int, rows: Any, member: Any, maps: Any, planted: bool, confirmed: bool) -> Cluster:
    mine = rows[member]
    evidence = [
        Evidence("accuracy", 0.95, 0.94, "95 % of its samples are classified rightly, 94 % elsewhere.")
    ]
    found = None
    if planted:
        evidence.insert(
            0,
            Evidence(
                "place",
                0.61,
                0.02,
                "61 % of its relevance lies in the lower left corner (6 % of the map), 2 % elsewhere.",
            ),
        )
        effect = Effect(2.4, 0.1, 1.9, 2.7, 60)
        words = "Put into clean samples the patch raises the score by 2.4 (a random patch: 0.1); taken out it lowers it."
        found = Confirmation(effect, effect, 0.45, 0.02, 0.61, 0.0625, True, words) if confirmed else None
    return Cluster(
        k, mine, float(member.mean()), 0.93 if planted else 0.1 + 0.05 * k, tuple(evidence), mine[:8],
        maps[mine].mean(0).astype(np.float32), MARK if planted else None, found,
    )  # fmt: skip
