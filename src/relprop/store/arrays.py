"""A complete store from arrays, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput
from relprop.store.read import Store, open
from relprop.store.schema import DONE, SPECS, spec_of
from relprop.store.write import create


def write_store(
    path: str | Path,
    *,
    relevance: Any,
    output: Any,
    target: Any = None,
    label: Any = None,
    score: Any = None,
    gap: Any = None,
    id: Sequence[str] | None = None,
    status: Any = None,
    reason: Sequence[str] | None = None,
    source: Sequence[str] | None = None,
    thumbnail: Any = None,
    kind: str = "image",
    classes: Sequence[str] = (),
    block: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    **columns: Any,
) -> Store:
    """A complete store from arrays, in one call.

    Args:
        path: the folder, which must not exist yet.
        relevance: (N, …), real.
        output: (N, K).
        target: (N,) whole numbers; by default the largest output.
        label: (N,); by default −1, none.
        score: (N,); by default the output at the target. gap: (N,); by default 0.
        id: (N,) names; by default the numbers of the samples.
        status: (N,); by default 1, done. reason, source: (N,) strings; by default empty.
        thumbnail: (N, h, w, 3) uint8.
        kind: one of `KINDS`. classes: names of the outputs.
        attributes: more of them, such as `plan`, `model`, `versions`, `command`.
        columns: more columns (N, …) by name.

    Raises `InvalidInput` where arrays do not fit each other or the folder is in use.
    """
    held, outputs = np.asarray(relevance), np.asarray(output)
    if held.ndim < 2 or outputs.ndim != 2:
        raise InvalidInput(
            f"relevance {held.shape} and output {outputs.shape}\n  do: give (N, …) and (N, K), a row a sample"
        )
    count = len(held)
    targets = outputs.argmax(1) if target is None else np.asarray(target)
    scores = _at_targets(outputs, targets) if score is None else score
    given: dict[str, Any] = {
        "relevance": held,
        "output": outputs,
        "target": targets,
        "label": np.full(count, -1) if label is None else label,
        "score": scores,
        "gap": np.zeros(count) if gap is None else gap,
        "id": [str(i) for i in range(count)] if id is None else list(id),
        "status": np.full(count, DONE) if status is None else status,
        "reason": [""] * count if reason is None else list(reason),
        "source": [""] * count if source is None else list(source),
        **({} if thumbnail is None else {"thumbnail": thumbnail}),
        **columns,
    }
    arrays = {name: np.asarray(values) for name, values in given.items()}
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise InvalidInput(
                f"{name}: shape {array.shape} for {count} samples\n  do: give one row a sample"
            )
    specs = {name: spec_of(name, array, kind) for name, array in arrays.items() if name not in SPECS}
    told = {"kind": kind, "classes": list(classes), **(attributes or {})}
    writer = create(path, count, specs, told, block=block, durable=False)
    for number in range(writer.blocks):
        rows = writer.rows(number)
        writer.write(number, {name: array[rows.start : rows.stop] for name, array in arrays.items()})
    return open(path)


def _at_targets(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """The output of each sample at its target."""
    if targets.shape != (len(outputs),) or targets.dtype.kind not in "iu":
        raise InvalidInput(
            f"target: {targets.dtype} {targets.shape}\n  do: give {len(outputs)} whole numbers, or score="
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]:
        raise InvalidInput(
            f"target: {int(targets.min())} to {int(targets.max())}, of {outputs.shape[1]} outputs\n"
            "  do: give numbers of outputs, or the explained score= itself"
        )
    found: NDArray[Any] = outputs[np.arange(len(outputs)), targets]
    return found
