"""Recordings: found, opened and turned into what a network takes.

soundfile reads them and scipy resamples them: `pip install 'relprop[audio]'`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from relprop.data import file_of
from relprop.errors import InvalidInput, MissingExtra

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")
"""File name endings of recordings."""

RATES = (1000, 768000)
"""The least and the largest number of samples a second."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A sound: its samples (N,), float32 in −1…1, one channel, and how many of them a second has."""

    samples: Tensor
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


def open_recording(path: str | Path, rate: int | None = None) -> Recording:
    """The sound in a file, its channels averaged, at `rate` samples a second (default: the file's own).

    Raises `InvalidInput` where there is no such file, it is no sound, or it is empty; `MissingExtra` without
    soundfile (and, for another rate, scipy).
    """
    file = file_of(path, "recording")
    return read_recording(file, str(file), rate)


def read_recording(file: Path | BinaryIO, name: str, rate: int | None = None) -> Recording:
    """As `open_recording`, of a file or of what was read of one; `name` is for errors."""
    reader = _soundfile()
    try:
        values, own = reader.read(file, dtype="float32", always_2d=True)
    except Exception as error:  # LibsndfileError, and OSError for what cannot be read
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise InvalidInput(
            f"{name}: a damaged or unreadable recording ({cause})\n  do: record or convert it again"
        ) from error
    samples = np.asarray(values, dtype=np.float32).mean(axis=1)
    if samples.size == 0:
        raise InvalidInput(f"{name}: an empty recording\n  do: give one with at least one sample")
    if not np.isfinite(samples).all():
        raise InvalidInput(f"{name}: its samples are NaN or infinite\n  do: record or convert it again")
    recording = Recording(torch.from_numpy(samples), int(own))
    return recording if rate is None else resampled(recording, rate)


def seconds_of(path: str | Path) -> float:
    """How long the recording in a file is, by its head alone; 0 where it cannot be read."""
    try:
        return float(_soundfile().info(path).duration)
    except MissingExtra:
        raise
    except Exception:  # as in `read_recording`, which tells what is wrong
        return 0.0


def resampled(recording: Recording, rate: int) -> Recording:
    """The recording at another rate, by a polyphase filter (scipy's `resample_poly`)."""
    if not RATES[0] <= rate <= RATES[1]:
        raise InvalidInput(
            f"rate: {rate} samples a second\n  do: give {RATES[0]} to {RATES[1]}, such as 16000"
        )
    if rate == recording.rate:
        return recording
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise MissingExtra("another rate needs scipy\n  do: pip install 'relprop[audio]'") from error
    common = math.gcd(rate, recording.rate)
    values = resample_poly(recording.samples.double().numpy(), rate // common, recording.rate // common)
    return Recording(torch.from_numpy(np.asarray(values, dtype=np.float32)), rate)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the library that it wraps is missing
        raise MissingExtra("recordings need soundfile\n  do: pip install 'relprop[audio]'") from error
    return soundfile
