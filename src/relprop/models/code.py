"""The user's own network: what "package.module:callable" returns."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from torch import nn

from relprop.errors import InvalidInput
from relprop.models.loaded import first_line, meant


def called(name: str) -> nn.Module:
    """What "package.module:callable" returns, with the current folder importable."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise InvalidInput(
            f"model: {module_name!r} is a file, not a module\n"
            f"  do: write {dotted}:{attribute}, from its folder"
        )
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InvalidInput(
                f"model: {module_name} imports {error.name!r}, which is not installed"
            ) from error
        raise InvalidInput(
            f"model: there is no module {module_name!r} in {here} or among the installed packages\n"
            "  do: give package.module:callable, from the folder that holds the package"
        ) from error
    except Exception as error:
        raise InvalidInput(f"model: {module_name} cannot be imported: {_cause(error)}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise InvalidInput(
                f"model: {module_name} ({getattr(module, '__file__', 'built in')})"
                f" has no {attribute!r}{meant(near)}"
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise InvalidInput(
                f"model: {name} is a {type(found).__name__}\n"
                "  do: give a callable that returns a torch.nn.Module"
            )
        try:
            found = found()
        except Exception as error:
            raise InvalidInput(
                f"model: {name}() failed: {_cause(error)}\n"
                "  do: give a callable that needs no arguments and returns a torch.nn.Module"
            ) from error
    if not isinstance(found, nn.Module):
        raise InvalidInput(
            f"model: {name}() returned a {type(found).__name__}\n  do: return a torch.nn.Module"
        )
    return found


def _cause(error: BaseException) -> str:
    """The error in one line with the place in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
