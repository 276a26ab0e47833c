"""Arrays as samples: `.npy` and `.npz` files, and arrays or tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.run.labels import NAMES
from relprop.run.samples import Intake, Label, Sample, Samples, of_array

INPUTS = ("inputs", "images", "x", "X", "data")
"""What the samples in a `.npz` file are called, the first that is there; an only array may have any name."""


def array_file(file: Path, intake: Intake, kind: str | None) -> Samples:
    """The samples of a `.npy` or `.npz` file. Raises `InvalidInput` where it holds none."""
    if not file.is_file():
        raise InvalidInput(f"data: {file}: no such file\n  do: look at the path")
    try:
        if file.suffix.lower() == ".npy":
            return arrays(np.load(file, mmap_mode="r", allow_pickle=False), (), intake, kind, str(file))
        with np.load(file, allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InvalidInput):
            raise
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"data: {file} holds no arrays of numbers ({cause})\n  do: write it by numpy.save or numpy.savez"
        ) from error
    name = next((one for one in INPUTS if one in found), None)
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name is None:
        raise InvalidInput(
            f"data: {file} has the arrays {', '.join(found) or 'none'}\n  do: call the samples inputs, (N, …)"
        )
    labels = next((found[one] for one in (*NAMES, "labels") if one in found), None)
    if labels is not None and labels.shape != (len(found[name]),):
        raise InvalidInput(
            f"data: {file} has labels of shape {labels.shape} for {len(found[name])} samples\n  do: give one a sample"
        )
    return arrays(found[name], () if labels is None else labels.tolist(), intake, kind, str(file))


def arrays(
    values: Any, labels: Sequence[Label], intake: Intake, kind: str | None = None, name: str = "an array"
) -> Samples:
    """The samples of an array or tensor (N, …).

    Whole numbers from 0 to 255 (uint8) of a picture's shape are pictures, which are scaled and normalised; all other
    values go to the model as they are.
    """
    held = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if held.ndim < 2 or len(held) == 0 or held.dtype.kind not in "biuf":
        raise InvalidInput(
            f"data: {name} of shape {held.shape}, {held.dtype}\n  do: give numbers (N, …), a row a sample"
        )
    raw = held.dtype == np.uint8 and held.ndim in (3, 4)
    what = kind or ("image" if raw else kind_of(held.shape[1:], held.dtype.kind))

    def read(number: int) -> Sample:
        return (
            intake.pixels(np.asarray(held[number])) if raw else intake.array(np.asarray(held[number]), what)
        )

    return Samples(
        kind=what,
        name=name,
        ids=[str(number) for number in range(len(held))],
        fingerprint=of_array(held),
        read=read,
        source=lambda number: f"{Path(name).absolute() if Path(name).exists() else name}#{number}",
        labels=list(labels),
    )


def kind_of(shape: Sequence[int], numbers: str = "f") -> str:
    """What an array of that shape a sample is, unless one says otherwise."""
    if len(shape) == 3 and shape[0] in (1, 3):
        return "image"
    if len(shape) == 1:
        return "text" if numbers in "iu" else "table"
    return "series"
