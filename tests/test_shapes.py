"""Shapes of values while a model is exported: those that torch works out by decomposing, and those that it gives numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

import relprop
from relprop.engine.shapes import _SHAPES, Shapes

aten = torch.ops.aten
NAMES = sorted(str(function) for function in _SHAPES)


def _arguments(name: str, dtype: torch.dtype = torch.float32, permuted: bool = False) -> tuple[Any, ...]:
    """An image or series of three samples, and what else the operation takes."""
    x = torch.rand(3, 4, 6, 8, dtype=dtype)
    x = x.permute(0, 2, 3, 1) if permuted else x
    width = x.shape[1] if "batch_norm" in name else x.shape[-1]
    weights = [torch.rand(width, dtype=dtype) for _ in range(4)]
    if "batch_norm" in name:
        return x, *weights, 0.1, 1e-5
    if "layer_norm" in name:
        return x, [width], *weights[:2], 1e-5
    return (x, 0.5) if "clamp" in name else (x,)


class _Operation(torch.nn.Module):
    """One operation, of a copy of its input, which it may write to."""

    def __init__(self, name: str, rest: tuple[Any, ...]) -> None:
        super().__init__()
        self.function = getattr(aten, name.split(".")[1]).default
        self.rest = rest

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x + 0, *self.rest)


def _metas(name: str, arguments: tuple[Any, ...], on: bool) -> list[tuple[Any, ...]]:
    """Sizes and types of what the operation returns for any number of samples; with our shapes or without."""
    x, *rest = arguments
    module = _Operation(name, tuple(rest))
    shapes = {"x": {0: Dim.DYNAMIC}}
    if on:
        with Shapes():
            program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
    else:
        program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
    node = next(node for node in program.graph.nodes if str(node.target) == name)
    return [
        (tuple(str(size) for size in value.shape), value.dtype, value.device)
        for value in pytree.tree_leaves(node.meta["val"])
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_types_are_those_of_the_decomposition(name: str, dtype: torch.dtype) -> None:
    arguments = _arguments(name, dtype)
    found, expected = (_metas(name, arguments, on) for on in (True, False))
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        sizes = zip(own[0], other[0], strict=True)
        assert all(a == b or not (a.isdigit() or b.isdigit()) for a, b in sizes)  # a symbol's name is free
        assert own[1:] == other[1:]


@pytest.mark.parametrize(
    ("name", "permuted"),
    [
        ("aten._native_batch_norm_legit_no_training.default", False),
        ("aten.native_layer_norm.default", False),
        ("aten.native_layer_norm.default", True),
        ("aten.gelu.default", True),
        ("aten.clamp.default", True),
    ],
)
def test_layout_in_memory_is_that_of_the_numbers(name: str, permuted: bool) -> None:
    arguments = _arguments(name, permuted=permuted)
    numbers = pytree.tree_leaves(_Operation(name, arguments[1:])(arguments[0]))[0]
    with Shapes():
        program = torch.export.export(
            _Operation(name, arguments[1:]),
            arguments[:1],
            dynamic_shapes={"x": {0: Dim.DYNAMIC}},
            strict=False,
        )
    node = next(node for node in program.graph.nodes if str(node.target) == name)
    assert pytree.tree_leaves(node.meta["val"])[0].stride() == numbers.stride()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_worked_out_as_ever(name: str) -> None:
    arguments = _arguments(name)
    module = _Operation(name, arguments[1:])
    with Shapes():
        found = module(arguments[0])
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(module(arguments[0])), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


class _Chooses(torch.nn.Module):
    """Control flow that torch.export keeps as an operation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.relu() + 1, lambda y: y - 1, (x,))


def test_control_flow_is_exported_as_without_it() -> None:
    with Shapes():
        program = torch.export.export(
            _Chooses(), (torch.rand(3, 4),), dynamic_shapes={"x": {0: Dim.DYNAMIC}}, strict=False
        )
    assert any(str(node.target) == "cond" for node in program.graph.nodes)


class _Functional(torch.nn.Module):
    """An LSTM without a layer of its own: torch's function on weights of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(*shape) / 4) for shape in ((20, 3), (20, 5), (20,), (20,))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(1, x.shape[0], 5)
        return torch.lstm(x, (state, state), list(self.held), True, 1, 0.0, False, False, True)[0][:, -1]


def test_a_recurrent_layer_called_as_a_function_is_kept_whole_and_serves_any_length() -> None:
    torch.manual_seed(0)
    model = _Functional().double().eval()
    explainer = relprop.Explainer(model, "lrp_all")
    for length in (4, 7):
        explainer(torch.randn(2, length, 3, dtype=torch.float64), 1)
        assert "aten.lstm.input" in str(explainer.plan)
