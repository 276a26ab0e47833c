"""Samples: what a data set is made of, whatever it is stored in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relprop.audio import Recording
from relprop.data import Preprocessing, pillow
from relprop.errors import InvalidInput

Label = int | str | None
"""A label as the data have it: a number, a name, or none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, read and ready.

    Attributes:
        inputs: a tensor without the batch, a text, or a dict of tensors with a batch of one.
        label: where only reading the sample tells it.
        thumbnail: (h, w, 3) uint8; None where it is no picture.
    """

    inputs: Any
    label: Label = None
    thumbnail: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """A data set: what its samples are called, and how one of them is read.

    Attributes:
        kind: "image", "text", "audio", "series" or "table".
        name: of the whole, for people.
        ids: the samples' names, each once.
        fingerprint: of the content, as far as it is known without reading all of it.
        read: reads a sample by its number; raises what says why it cannot be read.
        source: where a sample is found again, by its number.
        labels: as the data have them, one a sample; empty where there are none, or where reading tells them.
        together: whether several samples may be read at once.
        texts: the texts themselves; empty where the samples are none.
        longest: the number of the sample that is longest, where their lengths differ.
        features: names of a table's columns.
    """

    kind: str
    name: str
    ids: Sequence[str]
    fingerprint: str
    read: Callable[[int], Sample] = field(repr=False)
    source: Callable[[int], str] = field(repr=False)
    labels: Sequence[Label] = ()
    together: bool = True
    texts: Sequence[str] = ()
    longest: int | None = None
    features: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Intake:
    """What a model takes, and so how samples are made ready for it.

    Attributes:
        reads: whether it reads texts, hears recordings, or takes arrays (and pictures made into them).
        preprocessing: from a picture to its input.
        dtype: of its inputs.
        device: where they go.
        features: what a model of transformers makes of a recording.
        rate: samples a second of the recordings it takes; None: the recordings' own.
        channels: whether a recording goes in as (1, samples).
        side: of thumbnails, at most; 0 for none.
    """

    reads: Literal["text", "sound", "array"] = "array"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    features: Callable[[Recording], dict[str, Tensor]] | None = None
    rate: int | None = None
    channels: bool = False
    side: int = 96

    def picture(self, opened: Any, label: Label = None) -> Sample:
        """The sample of a picture that Pillow has opened (RGB)."""
        crop = self.preprocessing.crop(opened)
        return Sample(self.preprocessing.tensor(crop), label, self._small(crop))

    def pixels(self, values: NDArray[np.uint8], label: Label = None) -> Sample:
        """The sample of a picture in numbers from 0 to 255: (h, w), (h, w, 1 or 3) or (1 or 3, h, w)."""
        first = values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[-1] not in (1, 3)
        turned = np.moveaxis(values, 0, -1) if first else values
        flat = turned[..., 0] if turned.ndim == 3 and turned.shape[-1] == 1 else turned
        return self.picture(pillow().Image.fromarray(np.ascontiguousarray(flat)).convert("RGB"), label)

    def array(self, values: Any, kind: str, label: Label = None) -> Sample:
        """The sample of a tensor or an array as the network takes it."""
        held = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
        small = self._of_array(held) if kind == "image" else None
        return Sample(held.to(self.dtype) if held.is_floating_point() else held, label, small)

    def recording(self, heard: Recording, label: Label = None) -> Sample:
        """The sample of a recording."""
        if self.features is not None:
            return Sample(self.features(heard), label)
        samples = heard.samples.to(self.dtype)
        return Sample(samples[None] if self.channels else samples, label)

    def _small(self, picture: Any) -> NDArray[np.uint8] | None:
        if not self.side:
            return None
        scale = min(1.0, self.side / max(picture.size))
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        return np.asarray(picture.convert("RGB").resize(size, pillow().Image.Resampling.BOX), dtype=np.uint8)

    def _of_array(self, values: Tensor) -> NDArray[np.uint8] | None:
        """A thumbnail of numbers that are no pixels: from the least (black) to the largest (white)."""
        if not self.side or not bool(torch.isfinite(values.float()).all()):
            return None
        real = values.detach().float().cpu()
        low, high = real.min(), real.max()
        pixels = ((real - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).numpy()
        grey = pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
        return self._small(pillow().Image.fromarray(np.ascontiguousarray(grey)))


def fingerprint(parts: Iterable[Any]) -> str:
    """A name of 16 letters for anything that prints: equal for equal parts in the same order."""
    held = hashlib.sha256()
    for part in parts:
        held.update(part if isinstance(part, bytes) else str(part).encode())
        held.update(b"\0")
    return held.hexdigest()[:16]


def of_array(values: Any) -> str:
    """The fingerprint of an array (N, …): of its shape and type, and of up to 64 rows from all over it."""
    rows = np.unique(np.linspace(0, len(values) - 1, min(64, len(values))).astype(int))
    pieces = [np.ascontiguousarray(np.asarray(values[int(row)])).tobytes() for row in rows]
    return fingerprint([tuple(values.shape), values.dtype, *pieces])


def each_once(ids: Sequence[str]) -> Sequence[str]:
    """The ids themselves. Raises `InvalidInput` where one stands for two samples."""
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise InvalidInput(f"data: {twice} is named twice\n  do: name each sample once")
    return ids
