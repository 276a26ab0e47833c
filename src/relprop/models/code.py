"""The user's own network: what "package.module:callable" returns."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from relprop.errors import InvalidInput
from relprop.models.loaded import first_line, meant
from relprop.models.weights import SEED


def called(name: str) -> nn.Module:
    """The module that "package.module:callable" returns or is, with the current folder importable.

    Random weights are the same in every call. Raises `InvalidInput` where it cannot be had.
    """
    found = named(name, "model", nn.Module, "torch.nn.Module")
    if not isinstance(found, nn.Module):
        raise InvalidInput(
            f"model: {name}() returned a {type(found).__name__}\n  do: return a torch.nn.Module"
        )
    return found


def named(name: str, what: str, kind: type, words: str) -> Any:
    """What "package.module:callable" is, where that is of the kind wanted, else what it returns; `what`: for errors.

    Raises `InvalidInput` where it cannot be had.
    """
    found = _attribute(name, what)
    if isinstance(found, kind) and not isinstance(found, type):
        return found
    if not callable(found):
        raise InvalidInput(
            f"{what}: {name} is a {type(found).__name__}\n  do: give a callable that returns a {words}"
        )
    try:
        with _seeded():
            return found()
    except Exception as error:
        raise InvalidInput(
            f"{what}: {name}() failed: {_cause(error)}\n"
            f"  do: give a callable that needs no arguments and returns a {words}"
        ) from error


def _attribute(name: str, what: str) -> Any:
    """What a module of the user's has under a name."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise InvalidInput(
            f"{what}: {module_name!r} is a file, not a module\n"
            f"  do: write {dotted}:{attribute}, from its folder"
        )
    found = module = _imported(module_name, what)
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            where = getattr(module, "__file__", "built in")
            raise InvalidInput(f"{what}: {module_name} ({where}) has no {attribute!r}{meant(near)}")
        found = getattr(found, part)
    return found


def _imported(name: str, what: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with _seeded():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise InvalidInput(
                f"{what}: {name} imports {error.name!r}, which is not installed\n  do: install it where relprop is installed"
            ) from error
        raise InvalidInput(
            f"{what}: there is no module {name!r} in {here} or among the installed packages\n"
            "  do: give package.module:callable, from the folder that holds the package"
        ) from error
    except (Exception, SystemExit) as error:  # a script without a main guard may leave the process
        raise InvalidInput(
            f"{what}: {name} cannot be imported: {_cause(error)}\n  do: make python -c 'import {name}' work"
        ) from error


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def _cause(error: BaseException) -> str:
    """The error in one line with the place in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
