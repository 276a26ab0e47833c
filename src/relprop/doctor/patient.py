"""The model under examination: its inputs, a double-precision copy of it, and what the checks ask of both."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.batch import batch_size, samples
from relprop.engine.graph import Graph, Ref, value_of
from relprop.engine.isolate import quietly, run_isolated
from relprop.engine.plan import Composite, Plan
from relprop.engine.propagate import HALF, Program, Weights, prepare, record
from relprop.errors import RelevanceWarning
from relprop.explain import Captured, Explainer, Inputs, arguments, leaves_of
from relprop.explain.batches import slice_batch
from relprop.explanation import Explanation
from relprop.targets import Target, main_output, weights_of

SAMPLES = 3


@dataclass
class Patient:
    """A model with its rules, the inputs that were given, and inputs drawn like them.

    `model` and `inputs` are the user's; `exact` and `exact_inputs` are a copy in double precision.
    """

    model: Any
    inputs: Inputs
    target: Target
    composite: Composite
    seed: int = 0
    before: dict[str, Any] = field(init=False)  # the model's state before anything is done with it

    def __post_init__(self) -> None:
        self.before = state_of(self.model) if isinstance(self.model, torch.nn.Module) else {}

    @cached_property
    def copied(self) -> torch.nn.Module | None:
        """A copy of the model that may be changed; None where it cannot be copied."""
        if not isinstance(self.model, torch.nn.Module):
            return None
        try:
            with quietly():
                return copy.deepcopy(self.model)
        except Exception:  # a model's own __deepcopy__, or weights that are results of others
            return None

    @cached_property
    def exact(self) -> torch.nn.Module | None:
        """A copy of the model in float64; None where there can be none."""
        if self.copied is None:
            return None
        with quietly():
            return copy.deepcopy(self.copied).double().eval()

    @property
    def precise(self) -> tuple[Any, Inputs, float]:
        """The model that laws are tested on, its inputs, and how far rounding may take two results apart."""
        if self.exact is not None:
            return self.exact, as_double(self.drawn(0)), 1e-9
        return self.model, self.drawn(0), 1e-3

    def drawn(self, number: int) -> Inputs:
        """Three samples like those given: real numbers with noise of their own spread, token ids shuffled."""
        generator = torch.Generator().manual_seed(self.seed + number)
        args, kwargs = samples(arguments(self.inputs), SAMPLES)
        size = batch_size((args, kwargs))

        def like(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != size:
                return leaf
            if leaf.is_floating_point():
                values = leaf.double()
                spread = float(values.std()) if values.numel() > 1 else 0.0
                noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
                return (values + (spread or 1.0) * noise).to(leaf.dtype)
            if leaf.dtype == torch.bool or leaf.dim() < 2 or bool((leaf == 1).logical_or(leaf == 0).all()):
                return leaf  # a mask
            rows = [row[torch.randperm(row.numel(), generator=generator)] for row in leaf.flatten(1).cpu()]
            return torch.stack(rows).reshape(leaf.shape).to(leaf.device)

        drawn: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(like, (args, kwargs))
        return drawn[1] if isinstance(self.inputs, Mapping) else drawn[0]

    def question(self, model: Any, inputs: Inputs) -> Any:
        """The target as weights of the output, so that many samples and one are asked the same; a callable as it is.

        Without a target each sample's largest output is explained, whatever the output's shape.
        """
        if callable(self.target) and not isinstance(self.target, Tensor):
            return self.target
        args, kwargs = arguments(inputs)
        if isinstance(model, torch.nn.Module):
            output = main_output(run_isolated(model, args, kwargs))
        else:
            output = main_output(explained(Explainer(model, self.composite), inputs, self.target).output)
        if self.target is None and output.dim() > 2:
            flat = torch.zeros_like(output).flatten(1)
            return flat.scatter_(1, output.flatten(1).argmax(1, keepdim=True), 1.0).reshape(output.shape)
        return weights_of(self.target, output, output.shape[0])[0]


def explained(explainer: Explainer, inputs: Inputs, target: Any = None) -> Explanation:
    """An explanation without its warnings: the doctor has a line for what they say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelevanceWarning)
        return explainer(inputs, target)


def as_double(inputs: Inputs) -> Any:
    """The same inputs, real numbers in float64."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )


def tensors(structure: Any) -> list[Tensor]:
    """The real tensors in a structure."""
    return [
        leaf
        for leaf in pytree.tree_leaves(structure)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def part(structure: Any, start: int, stop: int, size: int = SAMPLES) -> Any:
    """The samples from start to stop of all that has the batch first."""
    return slice_batch(structure, size, start, stop)


def difference(a: Any, b: Any) -> float:
    """The largest difference of two structures of tensors, as a part of the largest value of the tensor it is in."""
    worst = 0.0
    first, second = tensors(a), tensors(b)
    if len(first) != len(second):
        return float("inf")
    for mine, other in zip(first, second, strict=True):
        if mine.shape != other.shape:
            return float("inf")
        if mine.numel():
            mine, other = mine.double(), other.double()
            scale = max(float(mine.abs().max()), float(other.abs().max()), 1e-300)
            gap = float((mine - other).abs().max()) / scale
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def run(
    captured: Captured, model: Any, inputs: Inputs, plan: Plan | None = None
) -> tuple[Program, dict[str, Any]]:
    """The graph run forward with every value kept."""
    graph = captured.graph
    args, kwargs = arguments(inputs)
    every = [
        Ref(node.name, index) if isinstance(node.meta, tuple) else Ref(node.name)
        for node in graph.nodes
        for index in (range(len(node.meta)) if isinstance(node.meta, tuple) else (None,))
    ]
    program = prepare(graph, captured.facts, plan or Plan((), Composite()), keep=every)
    with quietly():
        return program, record(program, leaves_of(model, graph, args, kwargs), Weights())


def outputs(graph: Graph, values: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a graph returns."""
    found = [value_of(values, ref) for ref in graph.outputs()]
    return [value for value in found if isinstance(value, Tensor)]


def loose(dtype: torch.dtype) -> float:
    """How far two ways to compute an output in this type may differ, relative to its largest value."""
    return 5e-2 if dtype in HALF else 1e-4 if dtype == torch.float32 else 1e-9


def precision(model: Any) -> torch.dtype:
    """The real type of a model's first weight; float32 where there is none."""
    held: Callable[[], Any] = (
        model.parameters if isinstance(model, torch.nn.Module) else model.state_dict.values
    )
    return next((weight.dtype for weight in held() if weight.is_floating_point()), torch.float32)


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """All that a call could leave behind on a model, and torch's random numbers."""
    state: dict[str, Any] = {"torch's random numbers": torch.get_rng_state()}
    for path, module in model.named_modules(remove_duplicate=False):
        name = path or "the model"
        state[f"{name}: class"] = (type(module), type(module).forward)
        for key, value in vars(module).items():
            if "hooks" in key:
                state[f"{name}: {key}"] = dict(value)
            elif key not in ("_parameters", "_buffers", "_modules"):
                state[f"{name}: {key}"] = value if isinstance(value, (bool, int, float, str)) else id(value)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        state[name] = weight.detach().clone()
        state[f"{name}: tensor"] = (id(weight), weight.data_ptr(), weight.requires_grad, id(weight.grad))
    return state
