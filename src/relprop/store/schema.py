"""The layout of a store: its version, what each column holds for a sample, and the names of axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput

SCHEMA = 1
"""The version of the layout that is written; later ones are refused."""

PENDING, DONE, FAILED = 0, 1, 2
"""The values of `status`."""

KINDS = ("image", "text", "audio", "series", "table")
"""The values of the attribute `kind`."""

AXES = {
    ("image", 3): ("channel", "y", "x"),
    ("image", 2): ("y", "x"),
    ("text", 1): ("token",),
    ("audio", 1): ("time",),
    ("audio", 2): ("channel", "time"),
    ("series", 1): ("time",),
    ("series", 2): ("channel", "time"),
    ("table", 1): ("feature",),
}
"""The names of relevance's axes after the samples, by the kind of data and their number."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a column holds for each sample.

    Attributes:
        dtype: a NumPy type, or "string".
        shape: of one sample; () for one value.
        axes: the names of these axes.
        fill: what a sample has that is not done yet.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    fill: Any = None

    @property
    def size(self) -> int:
        """Bytes of one sample (a guess for strings)."""
        each = 64 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return each * int(np.prod(self.shape, dtype=np.int64))


SPECS = {
    "id": Spec("string", fill=""),
    "target": Spec("int64", fill=-1),
    "label": Spec("int64", fill=-1),
    "score": Spec("float64", fill=np.nan),
    "gap": Spec("float64", fill=np.nan),
    "status": Spec("uint8", fill=PENDING),
    "reason": Spec("string", fill=""),
    "source": Spec("string", fill=""),
}
"""The columns that every store has beside `relevance` and `output`; label −1 is none, reason why a sample failed."""


def spec_of(name: str, array: NDArray[Any], kind: str) -> Spec:
    """The specification of a column that holds such an array (N, …)."""
    text = array.dtype.kind in "OUT"
    dtype, shape = "string" if text else array.dtype.name, array.shape[1:]
    fill: Any = "" if text else np.nan if array.dtype.kind == "f" else False if dtype == "bool" else 0
    return Spec(dtype, shape, axes_of(name, len(shape), kind), fill)


def axes_of(name: str, count: int, kind: str) -> tuple[str, ...]:
    """The names of a column's axes after the samples."""
    if name == "relevance" and (kind, count) in AXES:
        return AXES[kind, count]
    return ("output",) if (name, count) == ("output", 1) else tuple(f"{name}_{i + 1}" for i in range(count))


def check(samples: int, specs: Mapping[str, Spec], attributes: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` where no store can be made of these."""
    if samples < 1:
        raise InvalidInput("store: no samples\n  do: give at least one")
    if attributes.get("kind") not in KINDS:
        raise InvalidInput(f"kind: {attributes.get('kind')!r} is unknown\n  do: one of {', '.join(KINDS)}")
    for name in ("relevance", "output"):
        if name not in specs:
            raise InvalidInput(f"store: no specification of {name}\n  do: give its dtype and shape")
    for name, spec in specs.items():
        if len(spec.axes) != len(spec.shape) or 0 in spec.shape[:-1]:
            raise InvalidInput(
                f"store: {name} has axes {spec.axes} for shape {spec.shape}\n  do: name each axis, of size 1 or more"
            )
