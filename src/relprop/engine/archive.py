"""What in a `.pt2` file would run code when torch reads it: such a file is refused before torch sees it.

A saved program holds its weights as plain bytes, but torch falls back to unpickling whatever an archive declares as
pickled, and a pickle can run any code.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from relprop.errors import InvalidInput

_PICKLE_STARTS = (b"PK", b"\x80")


def refuse_code(file: Path) -> None:
    """Raise `InvalidInput` where the archive holds anything that only an unrestricted unpickler could read."""
    with zipfile.ZipFile(file) as archive:
        plain = _plain_entries(archive)
        for name in archive.namelist():
            if name in plain:
                continue
            content = archive.read(name)
            if content.startswith(_PICKLE_STARTS) and not _harmless(content):
                raise InvalidInput(
                    f"model: {file} holds {name}, a pickle that could run code when it is read\n"
                    "  do: save the program again with a current torch.export.save, from tensors and plain values only"
                )


def _plain_entries(archive: zipfile.ZipFile) -> set[str]:
    """The entries that torch reads as raw bytes of tensors."""
    found: set[str] = set()
    for name in archive.namelist():
        if not name.endswith("_config.json"):
            continue
        folder = name.rpartition("/")[0]
        for payload in json.loads(archive.read(name)).get("config", {}).values():
            if not payload.get("use_pickle"):
                found.add(f"{folder}/{payload['path_name']}")
    return found


def _harmless(content: bytes) -> bool:
    """Whether torch's restricted unpickler, which runs no code, can read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        return False
    return True
