"""A torch `Dataset` as samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from relprop.errors import InvalidInput
from relprop.models.code import named
from relprop.run.labels import NAMES
from relprop.run.samples import Intake, Label, Sample, Samples, fingerprint
from relprop.run.sources.arrays import INPUTS, kind_of

IDS = "input_ids"
"""What an item with token ids has; all its tensors then go to the model by their names."""

FIELDS = (*INPUTS, "image", "input", "text", "pixel_values")
"""What an item that is a table calls its input, the first that is there."""


def is_dataset(data: Any) -> bool:
    """Whether it has a length and items by number, as a map-style `torch.utils.data.Dataset`."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def dataset_named(name: str, intake: Intake, kind: str | None) -> Samples:
    """The data set that "package.module:callable" is or returns. Raises `InvalidInput` where it cannot be had."""
    found = named(name, "data", Dataset, "torch.utils.data.Dataset with a length")
    return dataset(found, intake, kind, name)


def dataset(held: Any, intake: Intake, kind: str | None = None, name: str = "a data set") -> Samples:
    """The items of a data set: an input, (input, label, …), or a table with the one and the other.

    Inputs are tensors or arrays as the model takes them, pictures of Pillow's, or texts. They are read one at a time; an
    item has to be the same whenever it is read. Raises `InvalidInput` where there is no length or no item can be read.
    """
    if not is_dataset(held):
        raise InvalidInput(
            f"data: {name} is a {type(held).__name__} without a length or items by number\n"
            "  do: give a map-style torch.utils.data.Dataset, which has __len__ and __getitem__"
        )
    count = len(held)
    if count == 0:
        raise InvalidInput(f"data: {name} is empty\n  do: give at least one sample")
    found = _first(held, count, name)
    what = kind or _kind(found)

    def read(number: int) -> Sample:
        value, label = parts_of(held[number])
        return sample_of(value, label, intake, what)

    described = found if isinstance(found, str) else [np.asarray(one).tobytes() for one in _leaves(found)]
    return Samples(
        kind=what,
        name=name,
        ids=[str(number) for number in range(count)],
        fingerprint=fingerprint([name, count, described]),
        read=read,
        source=lambda number: f"{name}#{number}",
        together=False,
        texts=[str(parts_of(held[i])[0]) for i in range(count)] if isinstance(found, str) else (),
    )


def _first(held: Any, count: int, name: str) -> Any:
    cause = ""
    for number in range(min(count, 64)):
        try:
            return parts_of(held[number])[0]
        except Exception as error:  # the user's own code
            cause = cause or f"{type(error).__name__}: {error}".splitlines()[0]
    raise InvalidInput(
        f"data: the first items of {name} cannot be read ({cause})\n  do: try data[0] in Python and mend it"
    )


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _kind(value: Any) -> str:
    if isinstance(value, (str, Mapping)):
        return "text"
    shape = getattr(value, "shape", None)
    return "image" if shape is None else kind_of(tuple(shape))


def parts_of(item: Any) -> tuple[Any, Label]:
    """The input and the label of an item."""
    if isinstance(item, Mapping):
        label = _label(next((item[one] for one in (*NAMES, "labels") if one in item), None))
        if IDS in item:
            tensors = {name: value for name, value in item.items() if name not in (*NAMES, "labels")}
            return {name: torch.as_tensor(value) for name, value in tensors.items()}, label
        name = next((one for one in FIELDS if one in item), None)
        if name is None:
            raise InvalidInput(
                f"data: an item has {', '.join(map(str, item))}\n  do: call its input {FIELDS[0]}"
            )
        return item[name], label
    if isinstance(item, (tuple, list)):
        return item[0], _label(item[1]) if len(item) > 1 else None
    return item, None


def _label(value: Any) -> Label:
    if isinstance(value, str):
        return value
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def sample_of(value: Any, label: Label, intake: Intake, kind: str) -> Sample:
    """The sample of an item's input, whatever it is."""
    if isinstance(value, str):
        return Sample(value, label)
    if isinstance(value, (Tensor, np.ndarray)):
        return intake.array(value, kind, label)
    if isinstance(value, Mapping):
        return Sample({name: one[None].to(intake.device) for name, one in value.items()}, label)
    if hasattr(value, "convert"):  # a picture of Pillow's
        return intake.picture(value.convert("RGB"), label)
    raise InvalidInput(
        f"an input that is a {type(value).__name__}\n  do: give a tensor, an array, a picture of Pillow's or a text"
    )
