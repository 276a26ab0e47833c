"""A whole data set explained into a store: resumable, on one machine or on a Ray cluster.

Needs zarr: `pip install 'relprop[run]'`; on a cluster Ray: `pip install 'relprop[ray]'`. What does the work is loaded when
it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relprop.run.local import Progress, Tally
    from relprop.run.recipe import Recipe, Task, prepared
    from relprop.run.samples import Sample
    from relprop.run.trial import Estimate, Trial, estimated, tried
    from relprop.run.whole import Summary, begin, check_cluster, finish, refuse_in_use

__all__ = [
    "Estimate",
    "Recipe",
    "Sample",
    "Summary",
    "Tally",
    "Task",
    "Trial",
    "begin",
    "check_cluster",
    "estimated",
    "finish",
    "prepared",
    "refuse_in_use",
    "run",
    "tried",
]

_PLACES = {
    "local": ("Tally",),
    "recipe": ("Recipe", "Task", "prepared"),
    "samples": ("Sample",),
    "trial": ("Estimate", "Trial", "estimated", "tried"),
    "whole": ("Summary", "begin", "check_cluster", "finish", "refuse_in_use"),
}


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"relprop.run.{place}"), name)
    raise AttributeError(f"module 'relprop.run' has no attribute {name!r}")


def run(
    model: Any,
    data: Any,
    store: str | Path,
    *,
    resume: bool = False,
    ray: str | None = None,
    workers: int | None = None,
    block: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Explain a whole data set into a store.

    Args:
        model: as for `relprop.explain`, or a name ("demo", "resnet50", "package.module:callable").
        data: a folder of pictures or recordings, files, arrays, texts, tables, tars, a torch `Dataset`:
            `relprop.run.sources.opened` has the list.
        store: a folder that does not exist yet.
        resume: go on with the store that is there; a new one is begun where there is none.
        ray: "local", or the address of a cluster. workers: how many; by default as many as there are processors or GPUs.
        block: samples that are written at a time; by default about ten seconds' work.
        progress: called with a `Tally` of what has just been done.
        options: those of `Recipe` (threads: 1 on a cluster): target, rules, method, batch, reduce, dtype, labels, tokenizer, …

    Raises:
        InvalidInput: the model, the data or the store cannot be used; the store is of another model, plan or data set.
        UnsupportedOperation, CaptureError: the model cannot be explained.
        RelpropError: the disk is full or refuses; what was finished stays, and `resume` goes on.
    """
    from relprop.run.recipe import Recipe, prepared
    from relprop.run.whole import begin, check_cluster, finish

    check_cluster(ray)
    options.setdefault("threads", None if ray is None else 1)
    recipe = Recipe(model=model, data=data, **options)
    task = prepared(recipe)
    with begin(task, store, resume=resume, block=block) as begun:
        return finish(begun, ray=ray, workers=workers, progress=progress)
