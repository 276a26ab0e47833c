"""The work of a run: its store is begun or opened again, its blocks are done, and what it came to is summed up."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from relprop import store as stores
from relprop.errors import InvalidInput, RelpropError
from relprop.run.local import Progress, Tally, work
from relprop.run.recipe import Task
from relprop.run.rows import blown_up
from relprop.run.trial import Trial, attributes, block_size, identity, tried

Writer = stores.Writer


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to.

    Attributes:
        store: where it is.
        samples, done, failed: of the whole store, in samples.
        before: how many were there already.
        reasons: of failures, each with how often it occurred, the most frequent first; file names are left out.
        failures: the first ones by id, with their reasons.
        unlabelled: samples without a label, where others have one.
        unknown: labels that are the names of none of the model's classes.
        blown_up: explained samples whose relevance was blown up on the way (see the column `magnitude`).
        seconds: of this run.
    """

    store: Path
    samples: int
    done: int
    failed: int
    before: int
    reasons: Mapping[str, int]
    failures: tuple[tuple[str, str], ...]
    unlabelled: int
    unknown: tuple[str, ...]
    blown_up: int
    seconds: float

    def open(self) -> stores.Store:
        """The store, for reading."""
        return stores.open(self.store)


def check_cluster(address: str | None) -> None:
    """Refuse a cluster that cannot be joined, before a store is made. See `run`."""
    if address is not None:
        from relprop.run.cluster import check

        check(address)


@dataclass(frozen=True, slots=True)
class Begun:
    """A run whose store is there and locked."""

    task: Task
    trial: Trial
    writer: Writer = field(repr=False)
    before: int
    left: tuple[int, ...]


@contextmanager
def begin(
    task: Task,
    store: str | Path,
    *,
    resume: bool = False,
    block: int | None = None,
    trial: Trial | None = None,
) -> Iterator[Begun]:
    """The store of a run, made or opened again, and its blocks that are left to do. See `run`."""
    place = Path(store)
    again = resume and (stores.is_store(place) or (place.is_dir() and any(place.iterdir())))
    if not again:
        refuse_in_use(place)
        made = tried(task) if trial is None else trial
        size = block_size(task, made, block)
        count = task.asked.count
        stores.create(place, len(task) * count, made.specs, attributes(task, made), block=size * count)
    with _locked(place):
        if again:
            held = stores.open(place)
            task = replace(task, threads=int(held.attributes.get("threads", task.threads)))
            made = tried(task, timed=False) if trial is None else trial
            refuse_other(held, task, made)
        writer = stores.reopen(place)
        finished = writer.finished()
        before = sum(len(writer.rows(int(k))) for k in np.flatnonzero(finished)) // task.asked.count
        yield Begun(task, made, writer, before, tuple(int(k) for k in np.flatnonzero(~finished)))


def finish(
    begun: Begun, *, ray: str | None = None, workers: int | None = None, progress: Progress | None = None
) -> Summary:
    """Do the blocks that are left, and sum up the store. See `run`."""
    started = time.perf_counter()
    report: Callable[[Tally], None] = progress or (lambda added: None)
    if begun.left and ray is None:
        work(begun.task, begun.trial.form, begun.writer, begun.left, report)
    elif begun.left:
        from relprop.run.cluster import scattered

        scattered(begun.task, begun.trial.form, begun.writer, begun.left, str(ray), workers, report)
    return summary(begun, time.perf_counter() - started)


def refuse_in_use(place: Path) -> None:
    """Raise `InvalidInput` for a folder that a new store cannot have, `RelpropError` for one that cannot be written."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "holds a store already" if stores.is_store(place) else "is in use"
        raise InvalidInput(
            f"store: {place} {what}\n  do: give another folder, or go on with a store by --resume"
        )
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    with stores.writing(place), tempfile.TemporaryFile(dir=there):
        pass


def refuse_other(held: stores.Store, task: Task, trial: Trial) -> None:
    """Raise `InvalidInput` for a store of another model, plan, data set or setting."""
    now, then = identity(task, trial), held.attributes.get("identity") or {}
    for name, value in now.items():
        if then.get(name) != value:
            pair = (
                ""
                if name in ("model", "plan", "data", "labels")
                else f" ({_short(then.get(name))}, now {_short(value)})"
            )
            words = {"data": "data set", "versions": "versions of the libraries"}.get(name, name)
            raise InvalidInput(
                f"store: {held.path} is of another {words}{pair}\n"
                "  do: give what it was begun with (its attribute command), or another folder"
            )


def _short(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One run at a time on a store; the lock goes when the process does."""
    import os

    try:
        import fcntl
    except ImportError:  # not there on Windows
        yield
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"store: another run is writing to {place}\n  do: wait for it, or give another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def summary(begun: Begun, seconds: float) -> Summary:
    """What the store holds."""
    held, count = stores.open(begun.writer.path), begun.task.asked.count
    status = held.status[::count]
    failed = status == stores.FAILED
    if not held.complete:
        raise RelpropError(
            f"store: {held.path} lacks {int((status == stores.PENDING).sum())} samples\n  do: go on with --resume"
        )
    rows = np.flatnonzero(failed) * count
    ids, why = held.lazy("id")[rows], held.lazy("reason")[rows]
    sources = held.lazy("source")[rows]
    plain = Counter(_without(str(r), str(i), str(s)) for i, r, s in zip(ids, why, sources, strict=True))
    labels = held.column("label")[::count]
    known = begun.trial.form.classes
    return Summary(
        store=held.path,
        samples=len(status),
        done=int((status == stores.DONE).sum()),
        failed=int(failed.sum()),
        before=begun.before,
        reasons=dict(plain.most_common()),
        failures=tuple(
            (str(i) if count == 1 else str(i).removesuffix("#1"), str(r))
            for i, r in zip(ids[:20], why[:20], strict=True)
        ),
        unlabelled=int(((labels < 0) & ~failed).sum()) if (labels >= 0).any() else 0,
        unknown=known.unknown,
        blown_up=blown_up(held.column("magnitude"), held.column("score")),
        seconds=seconds,
    )


def _without(reason: str, name: str, source: str) -> str:
    """A reason without what it says of the one file."""
    short = reason
    for one in (source, name):
        head, _, tail = short.partition(": ")
        if tail and head.endswith(Path(one).name):
            short = tail
    return short
