"""The first samples are explained before a run begins: what its rows look like, and what it will take."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import relprop
from relprop.engine.plan import Plan
from relprop.errors import InvalidInput, RelpropError
from relprop.models import check_names
from relprop.run.labels import Classes, classes_of
from relprop.run.recipe import Asked, Task, model_fingerprint, tokens_of
from relprop.run.rows import (
    Failure,
    Form,
    Row,
    batch_of,
    block_of,
    explained,
    explanations_of,
    one_line,
    read,
    specs_of,
)
from relprop.run.samples import Sample, fingerprint
from relprop.store import PENDING, SHARD, SPECS, Spec, stored

FIRST = 64
"""How many of the first samples may fail before a run is refused."""

SECONDS = 10.0
"""How long a block takes, about: what a killed run loses at most."""

BLOCK = 1024
"""Samples in a block, at most."""

LOADERS = 4
"""Threads that read samples."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What the first samples told.

    Attributes:
        form: of the rows.
        specs: of the columns.
        plan: the rule of every operation, as plain values; empty for methods without rules.
        compute, load: seconds a sample: of explaining, and of reading it by one thread.
        size: bytes a sample in the store, compressed; those of the first samples.
        failures: the reasons of those that failed.
    """

    form: Form
    specs: dict[str, Spec] = field(repr=False)
    plan: list[dict[str, str]] = field(repr=False)
    compute: float
    load: float
    size: float
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take.

    Attributes:
        samples: how many, all in all, and rows the store will have.
        seconds: about, on this machine with `workers` processes.
        rate: samples a second.
        size: bytes of the store, about; free: bytes that its disk has.
        block: samples in a block, of which there are `blocks`.
    """

    samples: int
    rows: int
    seconds: float
    rate: float
    size: int
    free: int
    block: int
    blocks: int
    shape: tuple[int, ...]
    dtype: str
    failures: tuple[str, ...]


def tried(task: Task, timed: bool = True) -> Trial:
    """Explain the first samples, and once more for the time.

    Raises:
        InvalidInput: none of the first 64 can be explained; the reason is the first one's.
        UnsupportedOperation: the model has an operation without a rule.
        CaptureError: the model cannot be captured.
    """
    numbers, held, load = _first(task)
    asked = task.asked if task.asked.mode == "fixed" else Asked("predicted")
    plain = dataclasses.replace(task, asked=asked)
    rows, failures = _explained(plain, Classes(task.classes), numbers, held)
    outputs = len(rows[0]["output"]) if len(rows[0]["output"]) > 1 else 0
    if task.recipe.classes is not None and outputs:
        check_names(task.classes, outputs)
    classes = classes_of(task.labels, task.classes, outputs)
    if task.asked.mode == "true" and classes.unknown and not classes.numbers:
        raise InvalidInput(
            f"target: the labels ({', '.join(classes.unknown[:3])}, …) are the names of none of the model's classes\n"
            "  do: name these with --classes FILE, or give numbers with --labels FILE"
        )
    if task.asked.mode in ("true", "top"):
        rows, failures = _explained(task, classes, numbers, held)
    shape, axis = _shape(task, rows, held)
    small = next((row["thumbnail"].shape for row in rows if row.get("thumbnail") is not None), None)
    form = Form(shape, outputs, classes, small, axis)
    specs = specs_of(task, form)
    plan = _plan(task)
    some = numbers[: task.batch]
    started = time.perf_counter()
    found = explained(task, classes, some, held[: task.batch]) if timed else []
    compute = (time.perf_counter() - started) / len(some) if timed else 0.0
    size = stored(specs, block_of(task, form, specs, some, found)) / len(some) if timed else 0.0
    return Trial(form, specs, plan, compute, load, size, failures)


def _first(task: Task) -> tuple[list[int], list[Sample | Failure], float]:
    """The first samples, at least one of which can be read, and the seconds that reading one takes."""
    numbers, held = [], []
    started = time.perf_counter()
    for number in range(min(len(task), max(FIRST, task.batch))):
        numbers.append(number)
        held.append(read(task, number))
        if len(held) >= task.batch and any(isinstance(one, Sample) for one in held):
            break
    seconds = (time.perf_counter() - started) / len(held)
    longest = task.samples.longest
    if longest is not None and longest < len(task) and longest not in numbers:
        numbers.append(longest)
        held.append(read(task, longest))
    return numbers, held, seconds


def _explained(
    task: Task, classes: Classes, numbers: Sequence[int], held: Sequence[Sample | Failure]
) -> tuple[list[Row], tuple[str, ...]]:
    found = explained(task, classes, numbers, held)
    rows = [one[0] for one in found if not isinstance(one, Failure)]
    reasons = tuple(one.reason for one in found if isinstance(one, Failure))
    if not rows:
        _raise(task, classes, numbers, held)
        raise InvalidInput(
            f"data: none of the first {len(found)} samples of {task.samples.name} can be explained; the first: {reasons[0]}\n"
            "  do: look at the data; is it what the model takes?"
        )
    return rows, reasons


def _raise(task: Task, classes: Classes, numbers: Sequence[int], held: Sequence[Sample | Failure]) -> None:
    """Raise the error of the first sample that could be read, where it is relprop's own."""
    for number, one in zip(numbers, held, strict=True):
        if isinstance(one, Sample):
            label = classes.number(task.labels[number] if task.labels else one.label)
            if task.asked.mode == "true" and label < 0:
                continue
            try:
                explanations_of(task, batch_of(task, [one]), [label])
            except RelpropError:
                raise
            except Exception as error:  # the model's own
                raise InvalidInput(
                    f"model: it does not take the samples of {task.samples.name} ({one_line(error)})\n"
                    "  do: look at their shape and type; is it what the model takes?"
                ) from error
            return


def _shape(
    task: Task, rows: Sequence[Row], held: Sequence[Sample | Failure]
) -> tuple[tuple[int, ...], int | None]:
    """The shape of relevance in the store, and the axis along which samples are of different lengths."""
    shapes = [row["relevance"].shape for row in rows]
    if task.samples.kind == "text" and len(shapes[0]) == 1:
        if task.recipe.length is not None:
            return (task.recipe.length,), 0
        longest = tokens_of(task) if task.samples.texts else max(_ids(one) for one in held)
        return (max(longest, *(shape[0] for shape in shapes)),), 0
    if task.samples.longest is None:
        return shapes[0], None
    largest = max(shapes, key=lambda shape: (len(shape), shape))
    differing = [
        axis for axis in range(len(largest)) if len({s[axis] for s in shapes if len(s) == len(largest)}) > 1
    ]
    return largest, differing[0] if differing else len(largest) - 1


def _ids(one: Sample | Failure) -> int:
    """How many token ids a sample has, with its padding."""
    inputs = getattr(one, "inputs", None)
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
    return ids.shape[-1] if isinstance(ids, torch.Tensor) else 0


def _plan(task: Task) -> list[dict[str, str]]:
    try:
        plan: Plan = task.explainer.plan
    except InvalidInput:  # a method without rules
        return []
    return plan.as_dicts()


# ---------------------------------------------------------------- what is stored of it


def identity(task: Task, trial: Trial) -> dict[str, Any]:
    """What a store has to agree on with a run that goes on with it: by name, plain values."""
    recipe = task.recipe
    plan = fingerprint((row["operation"], row["module"], row["rule"]) for row in trial.plan)
    return {
        "model": model_fingerprint(task.explainer),
        "data": f"{task.samples.fingerprint}, {len(task)} samples",
        "method": {"method": recipe.method, **{k: str(v) for k, v in recipe.options.items()}},
        "plan": plan if trial.plan else "",
        "target": str(recipe.target),
        "labels": fingerprint(map(str, task.labels)),
        "preprocessing": str(task.intake.preprocessing) if task.samples.kind == "image" else "",
        "batch": task.batch,
        "reduce": recipe.reduce,
        "dtype": recipe.dtype,
        "thumbnail": recipe.thumbnail,
        "device": torch.device(recipe.device).type,
        "versions": versions(),
    }


def attributes(task: Task, trial: Trial) -> dict[str, Any]:
    """The attributes of the store: all that is needed to repeat it."""
    told = identity(task, trial)
    explainer, recipe = task.explainer, task.recipe
    how = task.intake.preprocessing
    return {
        "kind": task.samples.kind,
        "classes": list(trial.form.classes.names),
        "plan": trial.plan,
        "rules": explainer.composite.name or repr(explainer.composite),
        "method": recipe.method,
        "model": {"name": task.name, "weights": task.weights, "fingerprint": told["model"]},
        "data": {"name": task.samples.name, "fingerprint": task.samples.fingerprint, "samples": len(task)},
        "preprocessing": {n: getattr(how, n) for n in how.__dataclass_fields__}
        if task.samples.kind == "image"
        else {},
        "features": list(task.samples.features),
        "target": str(recipe.target),
        "reduce": recipe.reduce,
        "output": "outputs" if trial.form.outputs else "score",
        "threads": task.threads,
        "versions": told["versions"],
        "command": recipe.command,
        "identity": told,
    }


def versions() -> dict[str, str]:
    """Of what the numbers hang on."""
    return {"relprop": relprop.__version__, "torch": torch.__version__}


def block_size(task: Task, trial: Trial, asked: int | None = None) -> int:
    """Samples in a block, whole batches: as many as are asked for, else some seconds of work, not too many bytes."""
    if asked is not None:
        return -(-asked // task.batch) * task.batch
    row = task.asked.count * max(spec.size for spec in {**SPECS, **trial.specs}.values())
    most = min(BLOCK, max(1, SHARD // row), max(1, -(-len(task) // 8)))
    wanted = min(most, max(1, int(SECONDS / max(trial.compute, 1e-6))))
    return max(1, -(-wanted // task.batch)) * task.batch


def loaders(task: Task) -> int:
    """How many samples are read at a time."""
    return LOADERS if task.samples.together else 1


def estimated(task: Task, trial: Trial, store: Path, workers: int = 1, block: int | None = None) -> Estimate:
    """What the run will take, from the trial; `block` as for `run`."""
    block = block_size(task, trial, block)
    each = max(trial.compute, trial.load / loaders(task)) / workers
    place = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists())
    return Estimate(
        samples=len(task),
        rows=len(task) * task.asked.count,
        seconds=each * len(task),
        rate=1 / max(each, 1e-9),
        size=round(trial.size * len(task)),
        free=shutil.disk_usage(place).free,
        block=block,
        blocks=-(-len(task) // block),
        shape=trial.form.relevance,
        dtype=task.recipe.dtype,
        failures=trial.failures,
    )


def pending(status: Any) -> int:
    """How many rows are not done yet."""
    return int((status == PENDING).sum())
