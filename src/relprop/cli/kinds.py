"""What is explained: photographs, recordings or texts, by what the arguments are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from relprop.audio import SUFFIXES as SOUNDS
from relprop.data import SUFFIXES as PICTURES
from relprop.errors import InvalidInput
from relprop.text import is_folder


def kind_of_inputs(given: Sequence[str], model: str) -> Literal["photos", "audio", "text"]:
    """The kind of the arguments: by the endings of files, else text where the model is a folder of transformers.

    Raises `InvalidInput` for arguments of several kinds, for none where the model reads text, and for a text where it reads
    none.
    """
    kinds = {_kind(one, model) for one in given}
    if len(kinds) > 1:
        raise InvalidInput(
            f"inputs: {' and '.join(sorted(kinds))} in one call\n  do: explain each kind in a call of its own"
        )
    if not kinds and is_folder(model):
        raise InvalidInput(f"inputs: none given for {model}\n  do: give a text in quotes, or a recording")
    return kinds.pop() if kinds else "photos"


def _kind(one: str, model: str) -> Literal["photos", "audio", "text"]:
    suffix = Path(one).suffix.lower()
    if suffix in SOUNDS and (Path(one).is_file() or not is_folder(model) or " " not in one):
        return "audio"
    if suffix in PICTURES and (Path(one).is_file() or not is_folder(model) or " " not in one):
        return "photos"
    if is_folder(model):
        return "text"
    if not suffix and not Path(one).exists():
        raise InvalidInput(
            f"{one}: no such file, and the model {model} reads no text\n"
            "  do: give a photograph or a recording; for a text, a folder saved by transformers: --model FOLDER"
        )
    return "photos"
