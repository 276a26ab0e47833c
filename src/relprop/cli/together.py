"""All samples of a store as one group: what `relprop analyse` does where no class has enough samples of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from relprop.analyse import Analysis, ClassAnalysis, spray
from relprop.errors import InvalidInput
from relprop.store import Store

TARGET = -1
"""What stands for the class of such a group."""

NAME = "all samples"

ABOUT_CLASSES = {"purity"}
"""Evidence that says nothing where samples of all classes are together."""


def too_small(store: Store, smallest: int) -> bool:
    """Whether no class of the store has samples enough, and all of them together do."""
    target = store.column("target")
    taken = target[store.done & (target >= 0)]
    return len(taken) >= smallest > int(np.bincount(taken).max(initial=0))


def spray_together(
    store: Store,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    side: int | None,
    **settings: Any,
) -> Analysis:
    """Spectral relevance analysis of all explained samples as one group, each explained for its own class.

    side, settings: those of `relprop.analyse.spray`; progress as there.

    Raises:
        InvalidInput: no sample is explained yet, or as `spray` does.
    """
    rows = np.flatnonzero(store.done)
    if len(rows) == 0:
        raise InvalidInput(
            f"store: no sample of {store.path} is explained yet\n  do: finish it with relprop run --resume"
        )
    small = "pooled" in store.columns and settings.get("sign") == "signed"
    fits = small and side is not None and side <= store.lazy("pooled").shape[1]
    relevance = store.lazy("pooled") if fits else store.relevance
    label = store.column("label")
    found = spray(
        relevance,
        label=label if (label >= 0).any() else None,
        output=store.column("output"),
        score=np.nan_to_num(store.column("score")),
        pictures=store.lazy("thumbnail") if "thumbnail" in store.columns else None,
        rows=rows,
        names=(NAME,),
        progress=progress,
        side=side,
        **settings,
    )
    source = {
        "store": str(store.path),
        "samples": len(store),
        "done": len(rows),
        "analysed": len(rows),
        "model": dict(store.attributes.get("model") or {}),
        "rules": store.attributes.get("rules", ""),
        "together": True,
    }
    return replace(found, classes=tuple(map(_of_all, found.classes)), source=source)


def _of_all(one: ClassAnalysis) -> ClassAnalysis:
    clusters = tuple(
        replace(c, evidence=tuple(e for e in c.evidence if e.name not in ABOUT_CLASSES)) for c in one.clusters
    )
    return replace(one, target=TARGET, clusters=clusters)
