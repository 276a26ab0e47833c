"""Keras 3 models on the torch backend (`pip install 'relprop[keras]'`): called as Keras calls them for prediction.

A Keras model is a module of PyTorch, but its layers are not: they are called past PyTorch's calls of modules, and
the flag `training` of a module means nothing to them. So the model is wrapped in a module of our own, which reads its
variables; the model itself stays as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from relprop.engine.frontends.layers import batch_norms, biased_convolutions, ids_kept, without_copies
from relprop.engine.graph import Graph, Node, parents
from relprop.errors import InvalidInput, MissingExtra

BACKEND = "  do: set the environment variable KERAS_BACKEND=torch before keras is imported, and load the model there"


class KerasModel(nn.Module):
    """A Keras model as a module in eval mode.

    Attributes:
        weights: the model's variables, the very tensors, under their paths ("dense/kernel" as "dense>kernel").
    """

    def __init__(self, model: Any, keep: bool) -> None:
        super().__init__()
        self._model = weakref.ref(model)
        self._kept = (model,) if keep else ()  # in a tuple, so that it is no submodule
        self.weights = nn.Module()
        for variable in model.variables:
            value, name = variable.value, variable.path.replace("/", ">").replace(".", "_")
            if isinstance(value, nn.Parameter):
                self.weights.register_parameter(name, value)
            else:
                self.weights.register_buffer(name, value)
        self.eval()

    @property
    def model(self) -> Any:
        """The Keras model."""
        return self._model()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model for prediction: positional inputs as they are, several as a list, names as a dict."""
        given: Any = kwargs if kwargs else args[0] if len(args) == 1 else list(args)
        with _left_alone(self.model):
            return self.model(given, training=False)


_KNOWN: weakref.WeakKeyDictionary[Any, KerasModel] = weakref.WeakKeyDictionary()


def is_keras(model: Any) -> bool:
    """Whether a model is one of Keras 3 (which is not imported for the question)."""
    layers = getattr(sys.modules.get("keras"), "Layer", None)
    return layers is not None and isinstance(model, layers)


def adapted(model: Any) -> KerasModel:
    """The module that stands for a Keras model, the same one each time.

    Raises `InvalidInput` for another backend than torch, and for a model that has no weights yet.
    """
    keras = sys.modules["keras"]
    if keras.backend.backend() != "torch":
        raise InvalidInput(f"model: Keras runs on the backend {keras.backend.backend()!r}\n{BACKEND}")
    if not model.built:
        raise InvalidInput(
            f"model: the Keras model {model.name!r} has no weights yet\n  do: call it once on an example, or model.build(shape)"
        )
    known = _KNOWN.get(model)
    if known is None or not _same_variables(known, model):
        known = _KNOWN[model] = KerasModel(model, keep=False)
    return known


def _same_variables(known: KerasModel, model: Any) -> bool:
    held = [*known.weights.parameters(), *known.weights.buffers()]
    return {id(value) for value in held} == {id(variable.value) for variable in model.variables}


def load(path: Path) -> KerasModel:
    """The model in a `.keras` file, read in Keras' safe mode: code in it is not run.

    Raises `InvalidInput` where it cannot be read or holds code, `MissingExtra` without keras.
    """
    keras = _imported()
    if keras.backend.backend() != "torch":
        raise InvalidInput(f"model: Keras runs on the backend {keras.backend.backend()!r}\n{BACKEND}")
    if not path.is_file():
        raise InvalidInput(f"model: no file {path}\n  do: give the path of a model saved by model.save(…)")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(
            f"model: {path} is not a Keras model that can be read in safe mode ({said})\n"
            "  do: save it with model.save, without Lambda layers; or load it yourself and give the model"
        ) from error
    return KerasModel(model, keep=True)


def _imported() -> Any:
    """Keras; where nothing has chosen a backend it is imported with torch's."""
    choose = "keras" not in sys.modules and "KERAS_BACKEND" not in os.environ
    if choose:
        os.environ["KERAS_BACKEND"] = "torch"
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        raise MissingExtra(
            "model: a .keras file needs Keras 3\n  do: pip install 'relprop[keras]'"
        ) from error
    finally:
        if choose:
            del os.environ["KERAS_BACKEND"]


@contextlib.contextmanager
def _left_alone(model: Any) -> Iterator[None]:
    """What the layers note down during a call is undone."""
    layers = {id(layer): layer for layer in model._flatten_layers()}
    before = [(vars(layer), dict(vars(layer))) for layer in layers.values()]
    try:
        yield
    finally:
        for held, saved in before:
            if held.keys() != saved.keys() or any(held[name] is not value for name, value in saved.items()):
                held.clear()
                held.update(saved)


def tidied(graph: Graph, model: KerasModel) -> Graph:
    """The graph with Keras' layers as single operations, each with the path of the layer that it is."""
    graph = without_copies(ids_kept(named(graph, model)))
    return batch_norms(biased_convolutions(graph))


def named(graph: Graph, model: KerasModel) -> Graph:
    """The graph with the layer of each operation that reads a weight."""
    layers = {layer.path.replace("/", "."): layer for layer in model.model._flatten_layers() if layer.path}
    owner: dict[str, str] = {}
    renamed: list[Node] = []
    for node in graph.nodes:
        if node.kind == "weight":
            owner[node.name] = node.origin.rpartition(".")[2].rpartition(">")[0].replace(">", ".")
        elif node.kind == "call":
            read = [owner[ref.name] for ref in parents(node) if ref.name in owner]
            if read and all(ref.name in owner for ref in parents(node)):
                owner[node.name] = read[0]  # a weight that is cast or reshaped first
            if read:
                layer = layers.get(read[0])
                cls = "" if layer is None else f"{type(layer).__module__}.{type(layer).__qualname__}"
                node = dataclasses.replace(node, module=read[0], module_class=cls)
        renamed.append(node)
    return dataclasses.replace(graph, nodes=tuple(renamed))
