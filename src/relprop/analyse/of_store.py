"""The strategies in a store, and the confirmation of what looks like an artefact with the model and the data it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relprop.analyse.confirming import FEWEST, confirm, has_room
from relprop.analyse.result import Analysis, ClassAnalysis, Cluster, with_confirmation
from relprop.analyse.strategies import spray
from relprop.errors import InvalidInput
from relprop.run.recipe import Task, model_fingerprint
from relprop.store import Column, Store

MOST = 64
"""So many samples on each side at most are changed to confirm an artefact."""

TOGETHER = "all samples"
"""The name of the group of all samples."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Padded:
    """Relevance of samples of differing lengths: what lies past the end of one counts as 0."""

    column: Column
    lengths: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, …)."""
        return self.column.shape

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        values = self.column[rows]
        beyond = np.arange(values.shape[1])[None, :] >= self.lengths[rows][:, None]
        values[beyond] = np.where(np.isnan(values[beyond]), 0, values[beyond])
        return values


def spray_store(
    store: Store,
    *,
    classes: Sequence[int] | None = None,
    correct: bool = False,
    together: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Analysis:
    """Spectral relevance analysis of every class of a store, or of all its samples as one group.

    A class is what samples were explained for (the column target). The small maps of the column `pooled` are read where the
    store has them and they do. Samples that are not done or failed take no part.

    Args:
        classes: only these.
        correct: only samples whose target is their label.
        together: all explained samples as one group, each explained for its own class: where no class has enough of them.
        progress: see `spray`.
        settings: those of `Settings`.

    Raises:
        InvalidInput: nothing is explained yet, no sample is left, or as `spray` does.
    """
    done = store.done
    if not done.any():
        raise InvalidInput(
            f"store: no sample of {store.path} is explained yet\n  do: finish it with relprop run --resume"
        )
    target, label = store.column("target"), store.column("label")
    taken = done & (target >= 0)
    if together:
        if classes is not None or correct:
            raise InvalidInput("together: all samples are one group\n  do: leave out classes and correct")
        target, taken = np.zeros_like(target), done
    elif not taken.any():
        raise InvalidInput(
            "store: its samples were explained for no single class\n  do: run with --target predicted or true"
        )
    if classes is not None:
        missing = sorted(set(classes) - set(target[taken].tolist()))
        if missing:
            there = [store.class_name(int(one)) for one in np.unique(target[taken])]
            more = f" and {len(there) - 6} more" if len(there) > 6 else ""
            raise InvalidInput(
                f"classes: no sample of {store.path} was explained for {', '.join(map(store.class_name, missing))}\n"
                f"  do: one of {', '.join(there[:6])}{more}"
            )
        taken &= np.isin(target, np.asarray(classes))
    if correct:
        taken &= label == target
        if not taken.any():
            raise InvalidInput(
                "store: no sample's target is its label\n  do: leave out the choice of correct ones"
            )
    analysis = spray(
        _relevance(store, settings),
        target,
        label=label if (label >= 0).any() else None,
        output=store.column("output"),
        score=np.nan_to_num(store.column("score")),
        pictures=store.lazy("thumbnail") if "thumbnail" in store.columns else None,
        rows=np.flatnonzero(taken),
        names=(TOGETHER,) if together else store.classes,
        progress=progress,
        **settings,
    )
    source = {
        "store": str(store.path),
        "samples": len(store),
        "done": int(done.sum()),
        "analysed": int(taken.sum()),
        "model": dict(store.attributes.get("model") or {}),
        "rules": store.attributes.get("rules", ""),
        **({"together": True} if together else {"correct": correct}),
    }
    found = tuple(map(_of_all, analysis.classes)) if together else analysis.classes
    return replace(analysis, classes=found, source=source)


def too_small(store: Store, smallest: int) -> bool:
    """Whether no class of the store has samples enough, and all of them together do."""
    target = store.column("target")
    taken = target[store.done & (target >= 0)]
    return len(taken) >= smallest > int(np.bincount(taken).max(initial=0))


def _of_all(one: ClassAnalysis) -> ClassAnalysis:
    """The group of all samples: it is no class, and how pure a cluster is of one says nothing there."""
    clusters = tuple(
        replace(c, evidence=tuple(e for e in c.evidence if e.name != "purity")) for c in one.clusters
    )
    return replace(one, target=-1, clusters=clusters)


def confirm_store(
    store: Store,
    analysis: Analysis,
    task: Task,
    *,
    least: int = 1,
    progress: Progress | None = None,
    seed: int = 0,
) -> Analysis:
    """Confirm the flagged clusters with the model and the data that the store was made from.

    Args:
        task: what `relprop.run.prepared` makes of the model and the data.
        least: how many clusters are looked at where fewer are flagged; the most suspicious ones.
        progress: called with the class's name, how many clusters are done, and how many there are.

    Returns:
        The analysis with `confirmation` filled in, or `unconfirmed` with the reason where a cluster cannot be put to the test: fewer
        than five samples on a side, no place, or one that leaves no room for a control.

    Raises:
        InvalidInput: another model or other data than the store's.
    """
    check_same(store, task)
    places = {name: number for number, name in enumerate(task.samples.ids)}
    suspects = [pair for pair in analysis.suspects if pair[1].place is not None]
    chosen = suspects[: max(least, len(analysis.flagged))]
    model = task.explainer.model
    for number, (one, cluster) in enumerate(chosen):
        if progress is not None:
            progress(one.name, number, len(chosen))
        groups = _groups(store, one, cluster, seed)
        if reason := _too_few(one, groups):
            analysis = with_confirmation(analysis, one.target, cluster.number, reason)
            continue
        affected, clean, donors = (_inputs(store, task, places, group) for group in groups)
        assert cluster.place is not None  # suspects have one
        if not has_room(cluster.place, tuple(affected.shape[2:])):
            reason = "the place leaves no room for a control of its size"
            analysis = with_confirmation(analysis, one.target, cluster.number, reason)
            continue
        share = next((e.value for e in cluster.evidence if e.name == "place"), float("nan"))
        found = confirm(
            model, affected, clean, cluster.place, one.target,
            donors=donors if len(donors) else None, share=share, batch_size=task.batch, seed=seed,
        )  # fmt: skip
        analysis = with_confirmation(analysis, one.target, cluster.number, found)
    return analysis


def _relevance(store: Store, settings: dict[str, Any]) -> Any:
    """What of the store is read: the small maps where they give the same, else the relevance."""
    side, signed = settings.get("side", 16), settings.get("sign", "signed") == "signed"
    if "pooled" in store.columns and side is not None and signed and settings.get("channels") is None:
        small = store.lazy("pooled")
        if side <= small.shape[1]:
            return small
    if "length" in store.columns and store.relevance.array.ndim == 2:
        return Padded(store.relevance, store.column("length"))
    return store.relevance


def check_same(store: Store, task: Task) -> None:
    """Raise `InvalidInput` for a task of another model or other data, where the store knows its own."""
    told = (store.attributes.get("model") or {}).get("fingerprint")
    if told and told != model_fingerprint(task.explainer):
        raise InvalidInput(
            f"model: {task.name} is not the one that {store.path} was made with\n  do: give that one, with its weights"
        )
    told = (store.attributes.get("data") or {}).get("fingerprint")
    if told and told != task.samples.fingerprint:
        raise InvalidInput(
            f"data: {task.samples.name} are not those that {store.path} was made from\n  do: give those, unchanged"
        )


def _groups(
    store: Store, one: ClassAnalysis, cluster: Cluster, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of affected samples, of clean ones of other classes, and of the class outside the cluster; `MOST` of each at most."""
    random = np.random.default_rng(seed)
    others = np.flatnonzero(
        store.done & (store.column("target") != one.target) & (store.column("label") != one.target)
    )
    rest = np.setdiff1d(one.rows, cluster.rows)
    drawn = [np.sort(random.permutation(rows)[:MOST]) for rows in (cluster.rows, others, rest)]
    return drawn[0], drawn[1], drawn[2]


def _too_few(one: ClassAnalysis, groups: Sequence[NDArray[np.int64]]) -> str:
    """Which side of a confirmation has too few samples, in words; empty where both have enough."""
    for rows, what in zip(groups, ("in the cluster", f"of classes other than {one.name}"), strict=False):
        if len(rows) < FEWEST:
            return f"{len(rows)} sample{'' if len(rows) == 1 else 's'} {what}, {FEWEST} are needed"
    return ""


def _inputs(store: Store, task: Task, places: dict[str, int], rows: NDArray[np.int64]) -> Tensor:
    """The model's inputs of some rows. Raises `InvalidInput` where a sample is gone or is no tensor."""
    names = [str(name) for name in store.lazy("id")[rows]] if len(rows) else []
    lost = [name for name in names if name not in places]
    if lost:
        raise InvalidInput(
            f"data: {lost[0]} is not among {task.samples.name}\n  do: give the data that the store was made from"
        )
    read = [task.samples.read(places[name]).inputs for name in names]
    if not read:
        return torch.empty(0)
    if not all(isinstance(one, Tensor) for one in read) or len({one.shape for one in read}) > 1:
        raise InvalidInput(
            "inputs: not tensors of one size\n  do: confirm on pictures or series of one length"
        )
    return torch.stack(read).to(task.intake.device)


def folder_of(store: str | Path) -> Path:
    """Where the analysis of a store is kept by default: beside it, as the store itself is only read."""
    path = Path(store)
    return path.with_name(f"{path.name}.analysis")
