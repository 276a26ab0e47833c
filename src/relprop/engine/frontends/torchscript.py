"""TorchScript: modules of torch.jit, and the files that hold them.

Torch's interpreter of TorchScript calls operations as a module does, so a script runs inside a module of ours, and
what it calls is captured like a module's. Branches that a script takes by values are recorded call by call.
"""

from __future__ import annotations

import weakref
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from relprop.errors import InvalidInput


class ScriptModel(nn.Module):
    """A TorchScript module as an ordinary one, with its weights under their own paths."""

    def __init__(self, script: torch.jit.ScriptModule, keep: bool) -> None:
        super().__init__()
        self._script = weakref.ref(script)
        self._kept = (script,) if keep else ()  # in a tuple, so that it is no submodule
        for path, tensor in (
            *script.named_parameters(remove_duplicate=False),
            *script.named_buffers(remove_duplicate=False),
        ):
            owner, name = _owner(self, path)
            owner.register_buffer(name, tensor.detach())  # the script's own memory
        self.eval()

    @property
    def script(self) -> Any:
        """The TorchScript module."""
        return self._script()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the script, without the interpreter's own fusions, and out of the reach of modes for Python's functions, which
        would hide from a capture what it calls."""
        with torch.jit.optimized_execution(False), torch._C.DisableTorchFunction():  # type: ignore[attr-defined]
            run = self.script._c._get_method(
                "forward"
            )  # not Python's spelling of it, which torch.export would call
            return run(*args, **kwargs)


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor at a path, made where it is missing, and the tensor's name in it."""
    *parts, name = path.split(".")
    for part in parts:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root, name


def names_of(model: ScriptModel) -> list[str]:
    """The names of what the script takes, in order."""
    return [argument.name for argument in model.script._c._get_method("forward").schema.arguments[1:]]


_KNOWN: weakref.WeakKeyDictionary[Any, ScriptModel] = weakref.WeakKeyDictionary()


def is_script(model: Any) -> bool:
    """Whether a model is a TorchScript module."""
    return isinstance(model, torch.jit.ScriptModule)


def adapted(script: torch.jit.ScriptModule) -> ScriptModel:
    """The module that runs a script, the same one each time. Raises `InvalidInput` in training mode."""
    _refuse_training(script)
    known = _KNOWN.get(script)
    if known is None:
        known = _KNOWN[script] = ScriptModel(script, keep=False)
    return known


def _refuse_training(script: torch.jit.ScriptModule) -> None:
    if any(module.training for module in script.modules()):
        raise InvalidInput(
            "model: the TorchScript module is in training mode, where dropout and batch statistics make a score of chance\n"
            "  do: call model.eval() first, before torch.jit.trace or torch.jit.save"
        )


def load(path: Path) -> ScriptModel:
    """The TorchScript module in a file. Its code is TorchScript, which torch's interpreter runs; no pickle of Python
    is read.

    Raises `InvalidInput` for weights alone, for whole pickled models, and for what cannot be read.
    """
    if not path.is_file():
        raise InvalidInput(f"model: no file {path}\n  do: give the path of a module saved by torch.jit.save")
    if not holds_script(path):
        raise InvalidInput(
            f"model: {path} is no TorchScript: it holds weights, or a pickled model that could run code when it is read\n"
            "  do: build the network and load its weights (torch.load(file, weights_only=True)), and give the module"
        )
    try:
        script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(
            f"model: {path} is not readable TorchScript ({said})\n  do: save it again with torch.jit.save"
        ) from error
    _refuse_training(script)
    return ScriptModel(script, keep=True)


def holds_script(path: Path) -> bool:
    """Whether a file is an archive with TorchScript code in it; one of weights has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
