"""From samples to rows of the store: a batch is explained, each sample becomes its values or the reason why not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.audit import LARGE
from relprop.errors import InvalidInput, MissingExtra, RelevanceWarning, RelpropError
from relprop.explanation import Explanation
from relprop.run.labels import Classes
from relprop.run.recipe import Task
from relprop.run.samples import Sample
from relprop.store import DONE, FAILED, SPECS, Spec, axes_of
from relprop.targets import main_output

POOLED = 32
"""Sides of the maps of pictures that are kept beside the full ones, for what looks at all of them at once."""

LOST = 2e-2
"""The share of Σ|R| that rounding to 16 bits may take."""

Row = dict[str, Any]
"""The values of one row of the store, by column."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample has no relevance."""

    reason: str
    label: int = -1


@dataclass(frozen=True, slots=True)
class Form:
    """What a run's rows look like, which a trial finds.

    Attributes:
        relevance: the shape of one sample's, after the reduction; shorter samples are filled up with zeros.
        outputs: how many outputs the model has; 0 where they are no row of classes, and only the score is kept.
        classes: how labels become classes.
        thumbnail: the shape of a thumbnail; None for none.
        axis: along which samples have lengths of their own; None where all are of one shape.
    """

    relevance: tuple[int, ...]
    outputs: int
    classes: Classes = field(repr=False)
    thumbnail: tuple[int, ...] | None = None
    axis: int | None = None


def specs_of(task: Task, form: Form) -> dict[str, Spec]:
    """The columns of the store beside those that every store has."""
    kind, dtype = task.samples.kind, task.recipe.dtype
    found = {
        "relevance": Spec(dtype, form.relevance, axes_of("relevance", len(form.relevance), kind), np.nan),
        "output": Spec(
            "float32" if dtype != "float64" else dtype, (max(1, form.outputs),), ("output",), np.nan
        ),
        "relevance_sum": Spec("float64", fill=np.nan),
        "absorbed": Spec("float64", fill=np.nan),
        "magnitude": Spec("float64", fill=np.nan),
    }
    if pooled(task, form):
        found["pooled"] = Spec("float32", (POOLED, POOLED), ("pooled_y", "pooled_x"), np.nan)
    if form.thumbnail is not None:
        found["thumbnail"] = Spec("uint8", form.thumbnail, ("thumbnail_y", "thumbnail_x", "colour"), 0)
    if form.axis is not None:
        found["length"] = Spec("int64", fill=0)
    if task.samples.kind == "text":
        found["tokens"] = Spec("string", fill="")
        if task.samples.texts:
            found["text"] = Spec("string", fill="")
    if form.classes.numbers or form.classes.unknown:
        found["label_name"] = Spec("string", fill="")
    if task.asked.count > 1:
        found |= {"sample": Spec("int64", fill=-1), "rank": Spec("int64", fill=0)}
    return found


def pooled(task: Task, form: Form) -> bool:
    """Whether small maps are kept: of pictures that are larger."""
    return (
        task.samples.kind == "image" and len(form.relevance) >= 2 and min(form.relevance[-2:]) >= 2 * POOLED
    )


def one_line(error: BaseException) -> str:
    """What an error says, in one line, with the name of its kind where that is none of relprop's."""
    text = " ".join(str(error).replace("\n  do: ", "; do: ").split())
    if isinstance(error, RelpropError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def fatal(error: BaseException) -> bool:
    """Whether an error is none of a sample: the memory or the device gave out."""
    words = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("allocate memory" in words or "CUDA error" in words or "device-side" in words)
    )


def read(task: Task, number: int) -> Sample | Failure:
    """One sample, or why it cannot be read."""
    try:
        return task.samples.read(number)
    except MissingExtra:
        raise
    except Exception as error:  # the user's files and code
        if fatal(error):
            raise
        return Failure(one_line(error))


def explained(
    task: Task, classes: Classes, numbers: Sequence[int], held: Sequence[Sample | Failure]
) -> list[list[Row] | Failure]:
    """For each of a batch of samples its rows (one; K for the K largest outputs), or why it has none.

    Samples of one shape are explained together; where that fails, each by itself.
    """
    found: dict[int, list[Row] | Failure] = {}
    groups: dict[Any, list[int]] = {}
    labels = {}
    for place, (number, one) in enumerate(zip(numbers, held, strict=True)):
        if isinstance(one, Failure):
            known = task.labels[number] if task.labels else None
            found[place] = Failure(one.reason, classes.number(known))
            continue
        labels[place] = classes.number(task.labels[number] if task.labels else one.label)
        if task.asked.mode == "true" and labels[place] < 0:
            found[place] = Failure("it has no label, and the true class was to be explained")
        else:
            groups.setdefault(_shape(one.inputs), []).append(place)
    for places in groups.values():
        found |= _group(task, places, [held[place] for place in places], [labels[place] for place in places])  # type: ignore[misc]
    return [found[place] for place in range(len(held))]


def _group(
    task: Task, places: list[int], held: list[Sample], labels: list[int]
) -> dict[int, list[Row] | Failure]:
    try:
        return dict(zip(places, _rows(task, held, labels), strict=True))
    except MissingExtra:
        raise
    except Exception as error:
        if fatal(error):
            raise
        if len(places) == 1:
            return {places[0]: Failure(one_line(error), labels[0])}
    found: dict[int, list[Row] | Failure] = {}
    for place, one, label in zip(places, held, labels, strict=True):
        found |= _group(task, [place], [one], [label])
    return found


def _rows(task: Task, held: Sequence[Sample], labels: Sequence[int]) -> list[list[Row] | Failure]:
    """The rows of samples of one shape."""
    explanations = explanations_of(task, batch_of(task, held), labels)
    columns = [_columns(task, explanation, len(held)) for explanation in explanations]
    found: list[list[Row] | Failure] = []
    for place, (sample, label) in enumerate(zip(held, labels, strict=True)):
        rows: list[Row] = []
        for rank, values in enumerate(columns, 1):
            row = {name: value[place] for name, value in values.items()} | {"label": label, "rank": rank}
            if sample.thumbnail is not None:
                row["thumbnail"] = sample.thumbnail
            rows.append(row)
        reason = next((row.pop("failed") for row in rows if row.get("failed")), "")
        found.append(Failure(reason, label) if reason else rows)
    return found


def explanations_of(task: Task, inputs: Any, labels: Sequence[int]) -> list[Explanation]:
    """The explanations of a batch: one, or K of the K largest outputs."""
    asked, explainer = task.asked, task.explainer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelevanceWarning)  # magnitudes are a column of the store
        if asked.mode == "true":
            return [explainer(inputs, list(labels))]
        first = explainer(inputs, asked.fixed if asked.mode == "fixed" else None)
        if asked.mode != "top":
            return [first]
        output = main_output(first.output)
        if output.dim() != 2 or output.shape[1] < asked.count:
            raise InvalidInput(
                f"target: top-{asked.count} of outputs of shape {tuple(output.shape)}\n  do: ask for fewer, or another target"
            )
        ranked = output.sort(dim=1, descending=True, stable=True).indices[:, : asked.count]
        others = [ranked[:, rank].tolist() for rank in range(1, asked.count)]
        return [first, *explainer.explain_targets(inputs, others)]


def batch_of(task: Task, held: Sequence[Sample]) -> Any:
    """The inputs of several samples as one batch."""
    first = held[0].inputs
    if isinstance(first, str):
        return [one.inputs for one in held]
    if isinstance(first, Mapping):
        return {name: torch.cat([one.inputs[name] for one in held]) for name in first}
    stacked = torch.stack([one.inputs for one in held])
    if stacked.is_floating_point():
        return stacked.to(task.intake.device, task.intake.dtype)
    return stacked.to(task.intake.device)


def _columns(task: Task, explanation: Explanation, count: int) -> dict[str, Any]:
    """The columns of one explanation of `count` samples, as the store has them."""
    audit, score = explanation.audit, explanation.score.detach().double().cpu().reshape(count)
    nothing = torch.full((count,), float("nan"), dtype=torch.float64)
    relevance, tokens = relevance_of(task, explanation)
    kept = nothing if audit is None else audit.score.cpu() - audit.relevance.cpu() - audit.gap.cpu()
    values: dict[str, Any] = {
        "relevance": [_reduced(task, one) for one in relevance],
        "score": score.numpy(),
        "output": outputs_of(explanation, score),
        "target": targets_of(explanation, count),
        "gap": (nothing if audit is None else audit.gap.cpu()).numpy(),
        "relevance_sum": np.array([float(one.double().sum()) for one in relevance]),
        "absorbed": kept.numpy(),
        "magnitude": (nothing if audit is None else audit.magnitude.cpu()).numpy(),
    }
    if tokens is not None:
        values["tokens"] = tokens
    values["failed"] = [_lost(task, one) for one in values["relevance"]]
    return values


def relevance_of(task: Task, explanation: Explanation) -> tuple[list[Tensor], list[str] | None]:
    """The relevance of each sample, and of texts their tokens: JSON, a list of [text, start, end]."""
    if task.samples.kind == "text" and explanation._text() is not None:
        listed = explanation.tokens
        told = [json.dumps([[t.text, t.start, t.end] for t in one], ensure_ascii=False) for one in listed]
        return [torch.tensor([t.relevance for t in one], dtype=torch.float64) for one in listed], told
    whole = explanation.relevance
    if isinstance(whole, Mapping):
        main = getattr(task.explainer.model, "main_input_name", None)
        whole = whole[main] if main in whole else next(v for v in whole.values() if isinstance(v, Tensor))
    elif isinstance(whole, (tuple, list)):
        whole = next(v for v in whole if isinstance(v, Tensor))
    if whole.layout != torch.strided:
        whole = whole.to_dense()
    return list(whole.detach().cpu()), None


def _reduced(task: Task, relevance: Tensor) -> NDArray[Any]:
    real = relevance.double() if task.recipe.dtype == "float64" else relevance.float()
    if task.recipe.reduce == "channels" and real.dim() > 1:
        real = real.sum(0)
    return real.numpy()


def _lost(task: Task, relevance: NDArray[Any]) -> str:
    """Why relevance cannot be kept in 16 bits; empty where it can, or more are there."""
    if task.recipe.dtype != "float16":
        return ""
    with np.errstate(over="ignore"):
        short = relevance.astype(np.float16).astype(np.float64)
    total = np.abs(relevance).sum(dtype=np.float64)
    error = np.abs(short - relevance).sum()
    if total == 0 or error <= LOST * total:
        return ""
    what = "is too large" if not np.isfinite(error) else f"loses more than {100 * LOST:.0f} % by rounding"
    return f"its relevance {what} in float16; do: store float32"


def outputs_of(explanation: Explanation, score: Tensor) -> NDArray[Any]:
    """The outputs (B, K); where they are no row of classes a sample, the score alone."""
    try:
        output = main_output(explanation.output).detach().double().cpu()
    except InvalidInput:
        output = score
    if output.dim() == 2:
        found: NDArray[Any] = output.numpy()
        return found
    only: NDArray[Any] = (output if output.dim() == 1 else score).reshape(-1, 1).numpy()
    return only


def targets_of(explanation: Explanation, count: int) -> list[int]:
    """The explained output of each sample: a class or a token; −1 for what is no single one."""
    target = explanation.target
    if isinstance(target, Tensor) and target.shape == (count,):
        if target.is_floating_point():  # the sign of a machine with one output
            return [int(value > 0) for value in target.tolist()]
        return [int(value) for value in target.tolist()]
    if isinstance(target, list) and len(target) == count:
        return [int(one[-1]) if isinstance(one, tuple) else int(one) for one in target]
    return [-1] * count


def block_of(
    task: Task,
    form: Form,
    specs: Mapping[str, Spec],
    numbers: Sequence[int],
    found: Sequence[list[Row] | Failure],
) -> dict[str, NDArray[Any]]:
    """The columns of a block: of every row of its samples."""
    count = task.asked.count
    whole = {**SPECS, **specs}
    columns = {
        name: np.full(
            (len(numbers) * count, *spec.shape),
            spec.fill,
            dtype=object if spec.dtype == "string" else spec.dtype,
        )
        for name, spec in whole.items()
    }
    for place, (number, one) in enumerate(zip(numbers, found, strict=True)):
        name, source = task.samples.ids[number], task.samples.source(number)
        for rank in range(1, count + 1):
            at = place * count + rank - 1
            values: Row = {
                "id": name if count == 1 else f"{name}#{rank}",
                "source": source,
                "sample": number,
                "rank": rank,
            }
            values["label_name"] = (
                str(task.labels[number]) if task.labels and task.labels[number] is not None else ""
            )
            if task.samples.texts:
                values["text"] = task.samples.texts[number]
            row = one if isinstance(one, Failure) else _fitted(form, one[rank - 1])
            if isinstance(row, Failure):
                values |= {"status": FAILED, "reason": row.reason, "label": row.label}
            else:
                values |= {"status": DONE} | row
                if "pooled" in columns:
                    values["pooled"] = _pooled(row["relevance"])
            for column, value in values.items():
                if column in columns:
                    columns[column][at] = value
    return columns


def _fitted(form: Form, row: Row) -> Row | Failure:
    """A row whose relevance has the store's shape, or why it cannot have it."""
    relevance: NDArray[Any] = row["relevance"]
    shape = relevance.shape
    if form.outputs and len(row["output"]) != form.outputs:
        return Failure(f"{len(row['output'])} outputs where the store holds {form.outputs}", row["label"])
    if form.thumbnail is not None and "thumbnail" in row and row["thumbnail"].shape != form.thumbnail:
        row = {name: value for name, value in row.items() if name != "thumbnail"}
    if shape == form.relevance and form.axis is None:
        return row
    fits = len(shape) == len(form.relevance) and all(
        a <= b for a, b in zip(shape, form.relevance, strict=True)
    )
    if form.axis is None or not fits:
        return Failure(f"relevance of shape {shape} where the store holds {form.relevance}", row["label"])
    filled = np.zeros(form.relevance, dtype=relevance.dtype)
    filled[tuple(slice(0, length) for length in shape)] = relevance
    return row | {"relevance": filled, "length": shape[form.axis]}


def _pooled(relevance: NDArray[Any]) -> NDArray[Any]:
    """The means of relevance, summed over channels, in 32 × 32 places."""
    flat = torch.from_numpy(np.ascontiguousarray(relevance)).float()
    flat = flat.sum(0) if flat.dim() == 3 else flat
    found: NDArray[Any] = F.adaptive_avg_pool2d(flat[None], POOLED)[0].numpy()
    return found


def _shape(inputs: Any) -> Any:
    """What samples have in common that are explained together."""
    if isinstance(inputs, str):
        return "text"
    if isinstance(inputs, Mapping):
        return tuple((name, tuple(value.shape)) for name, value in inputs.items())
    return tuple(inputs.shape), inputs.dtype


def blown_up(magnitude: NDArray[Any], score: NDArray[Any]) -> int:
    """How many samples had relevance blown up on the way beyond what is worth a warning."""
    with np.errstate(invalid="ignore"):
        return int((magnitude / np.maximum(np.abs(score), 1) > LARGE).sum())
