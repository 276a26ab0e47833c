"""Bounding boxes of photographs: read from a table, and drawn as masks of what a network saw."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relprop.data import Preprocessing
from relprop.errors import InvalidInput

COLUMNS = ("file", "class_name", "x0", "y0", "x1", "y1")
"""The columns of a table of boxes; others may stand beside them."""


@dataclass(frozen=True, slots=True)
class Box:
    """An object of a photograph: its class and its place in pixels, from the top left corner."""

    name: str
    left: float
    top: float
    right: float
    bottom: float


def read_boxes(file: str | Path) -> dict[str, tuple[Box, ...]]:
    """The boxes of each photograph, by its file name without folders, from a CSV file with the columns of `COLUMNS`.

    Raises `InvalidInput` for a file that is not there or no such table, with the line at fault.
    """
    found: dict[str, list[Box]] = {}
    for number, row in _rows(Path(file), COLUMNS):
        try:
            sides = [float(row[side]) for side in COLUMNS[2:]]
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{file}, line {number}: a side of the box is no number\n  do: give x0, y0, x1, y1 in pixels"
            ) from error
        if not (sides[0] < sides[2] and sides[1] < sides[3]):
            raise InvalidInput(
                f"{file}, line {number}: the box {sides} is empty\n  do: give x0 < x1 and y0 < y1"
            )
        found.setdefault(Path(row["file"]).name, []).append(Box(row["class_name"], *sides))
    return {name: tuple(boxes) for name, boxes in found.items()}


def read_classes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Which outputs of a model stand for a class of boxes, from a CSV file: its name, then numbers with spaces between.

    Raises `InvalidInput` for a file that is not there or no such table, with the line at fault.
    """
    found = {}
    for number, row in _rows(Path(file), ("class_name",)):
        name, *numbers = row.values()
        text = " ".join(one or "" for one in numbers).split()
        if not text or not all(part.isdecimal() for part in text):
            raise InvalidInput(
                f"{file}, line {number}: {' '.join(text)!r} names no outputs\n"
                "  do: give the class's name and the numbers of its outputs: dog,151 152"
            )
        found[name] = tuple(int(part) for part in text)
    return found


def _rows(file: Path, columns: Sequence[str]) -> Iterable[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InvalidInput(
                    f"{file}: no column {', '.join(missing)}\n  do: give a CSV file with {', '.join(columns)}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"{file}: cannot be read ({cause})\n  do: give a CSV file") from error
    if not rows:
        raise InvalidInput(f"{file}: no rows below the head\n  do: give a box a line")
    return rows


def named(boxes: Iterable[Box], name: str) -> list[Box]:
    """The boxes of one class."""
    return [box for box in boxes if box.name == name]


def box_mask(boxes: Iterable[Box], width: int, height: int, how: Preprocessing, side: int = 0) -> Tensor:
    """True where a pixel's centre lies in any of the boxes: (side, side), by default as large as the network's input.

    width, height: of the photograph, whose pixels the boxes count; how: what made the input from it. Boxes are clipped
    to the crop; what is left of less than a pixel marks none.
    """
    side = side or how.size
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * how.size / side
    mask = torch.zeros(side, side, dtype=torch.bool)
    for box in boxes:
        left, top, right, bottom = how.placed((box.left, box.top, box.right, box.bottom), width, height)
        inside = (centres >= left) & (centres < right)
        mask |= ((centres >= top) & (centres < bottom))[:, None] & inside
    return mask


def output_names(classes: Sequence[str], meant: Mapping[str, Sequence[int]] | None) -> dict[int, str]:
    """The class of boxes that each output of a model stands for: as `meant` says, else the output's own name."""
    if meant is None:
        return dict(enumerate(classes))
    return {index: name for name, indices in meant.items() for index in indices}
