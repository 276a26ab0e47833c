"""PatternNet and PatternAttribution (Kindermans et al. 2018): backward passes by what a layer's inputs have in common with its output.

A weight says what a unit filters, not what it detects: the pattern a of y = wᵀx is the direction in which x moves with y,
estimated from data. PatternNet propagates the output with a in place of w, PatternAttribution with w ⊙ a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from relprop.differentiable import Differentiable
from relprop.engine.graph import Node, Ref, consumers, refs, value_of
from relprop.engine.ops import OPS
from relprop.errors import InvalidInput
from relprop.explain import Captured
from relprop.gradients import is_relu
from relprop.targets import main_output

Found = tuple[Tensor, ...]
Estimator = Literal["positive", "positive_mean", "linear"]

ESTIMATORS: dict[str, str] = {
    "positive": "two components: samples at which the unit is on, E[y] over all samples",
    "positive_mean": "the same, E[y] over the samples at which the unit is on",
    "linear": "cov(x, y) / var(y), in every layer",
}
"""How patterns are estimated. Layers without a ReLU behind them always have the linear one."""

WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d", "convolution", "padded_convolution")
PASSING = ("selection", "addition", "pool", "max", "batch_norm")
"""Kinds of operation that values pass through as gradients do."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What of the data an estimate needs, for every unit of a layer: sums over samples and places, of the weights' shape (K, …).

    Attributes:
        count: samples and places, and those with y > 0, (K,) each.
        y: Σ y over all, and over those with y > 0, (K,) each.
        x: Σ x; x_on: over those with y > 0.
        xy: Σ x y; xy_on: over those with y > 0.
    """

    count: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]
    x: Tensor
    x_on: Tensor
    xy: Tensor
    xy_on: Tensor

    def __add__(self, other: Sums) -> Sums:
        def plus(a: Any, b: Any) -> Any:
            return tuple(i + j for i, j in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b

        return Sums(*(plus(getattr(self, name), getattr(other, name)) for name in Sums.__slots__))


def sums(layer: Callable[[Tensor], Tensor], weight: Tensor, y: Tensor) -> Sums:
    """The sums of one batch.

    layer: from weights to the layer's output without bias; weight (K, …); y: the output, its units along dimension 1 (or the
    last one of a linear layer's (…, K), which is then given transposed). Σ over places of x y is the weights' gradient.
    """
    on = (y > 0).to(y.dtype)
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        out = layer(leaf)
        x, x_on, xy, xy_on = (
            torch.autograd.grad(out, leaf, upstream, retain_graph=True)[0]
            for upstream in (torch.ones_like(y), on, y, y * on)
        )
    others = tuple(d for d in range(y.dim()) if d != 1)
    number = torch.full((y.shape[1],), y.numel() / y.shape[1], dtype=y.dtype, device=y.device)
    return Sums((number, on.sum(others)), (y.sum(others), (y * on).sum(others)), x, x_on, xy, xy_on)


def pattern(found: Sums, weight: Tensor, estimator: str = "positive") -> Tensor:
    """The patterns of a layer's units, of the weights' shape (K, …): wᵀa = 1, and 0 for units that never move.

    With E the mean over all samples ("linear") or over those with y > 0: a ∝ E[x y] − E[x] E[y] (Kindermans et al. 2018, Eq. 5
    and 7); E[y] is over all samples ("positive") or over those with y > 0 ("positive_mean").
    """
    shape = (-1, *[1] * (weight.dim() - 1))
    everyone, on = (count.reshape(shape).clamp(min=1) for count in found.count)
    y, y_on = (total.reshape(shape) for total in found.y)
    if estimator == "linear":
        direction = found.xy / everyone - found.x / everyone * (y / everyone)
    else:
        level = y / everyone if estimator == "positive" else y_on / on
        direction = found.xy_on / on - found.x_on / on * level
    length = (weight * direction).flatten(1).sum(1).reshape(shape)
    size = (weight * direction).flatten(1).abs().sum(1).reshape(shape)
    still = length.abs() <= 1e-9 * size
    return torch.where(
        still, torch.zeros_like(direction), direction / torch.where(still, torch.ones_like(length), length)
    )


@dataclass(frozen=True, slots=True)
class Patterns:
    """Training inputs, and the patterns that are estimated from them on first use.

    Args:
        data: training inputs (N, …) of the model.
        estimator: a key of `ESTIMATORS`.
        rows: how many run through the model at a time.
    """

    data: Tensor
    estimator: Estimator = "positive"
    rows: int = 64
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for data that is no batch and an unknown estimator."""
        if not isinstance(self.data, Tensor) or not self.data.is_floating_point() or len(self.data) < 2:
            raise InvalidInput(
                "patterns: no training inputs\n  do: give Patterns(data), real numbers (N, …), two samples or more"
            )
        if self.estimator not in ESTIMATORS:
            raise InvalidInput(
                f"estimator: {self.estimator!r} is unknown\n  do: one of {', '.join(ESTIMATORS)}"
            )

    def of(
        self, function: Differentiable, layers: Mapping[str, Node], rectified: frozenset[str]
    ) -> dict[str, Tensor]:
        """The pattern of each layer; estimated anew where a weight is no longer the one it was estimated for."""
        weights = {name: _weight(function, node) for name, node in layers.items()}
        fresh = self.kept.keys() == weights.keys() and all(
            torch.equal(self.kept[name][0], weight) for name, weight in weights.items()
        )
        if not fresh:
            self.kept.clear()
            found: dict[str, Sums] = {}
            for part in torch.split(self.data, self.rows):
                for name, one in _sums(function, layers, weights, part).items():
                    found[name] = found[name] + one if name in found else one
            for name, weight in weights.items():
                how = self.estimator if name in rectified else "linear"
                estimated = pattern(found[name], weight.double(), how).to(weight.dtype)
                self.kept[name] = (weight.clone(), estimated)
        return {name: estimated for name, (_, estimated) in self.kept.items()}


def _weight(function: Differentiable, node: Node) -> Tensor:
    """The weights of a layer as the model has them now."""
    held = function.run((*function.points, *function.extra()), keep=frozenset({node.args[1].name}))[1]
    found: Tensor = value_of(held, node.args[1])
    return found.detach()


def _sums(
    function: Differentiable, layers: Mapping[str, Node], weights: Mapping[str, Tensor], part: Tensor
) -> dict[str, Sums]:
    """The sums of all layers for some of the data, in float64."""
    (point,) = function.points
    if part.shape[1:] != point.shape[1:]:
        raise InvalidInput(
            f"patterns: samples of shape {tuple(part.shape[1:])} for inputs of shape {tuple(point.shape[1:])}\n  do: give training inputs"
        )
    extra = tuple(e[:1].expand(len(part), *e.shape[1:]) for e in function.extra())
    keep = frozenset(name for node in layers.values() for name in (node.name, node.args[0].name))
    with torch.no_grad():
        held = function.run((part.to(point), *extra), keep=keep)[1]
    found = {}
    for name, node in layers.items():
        x, y = value_of(held, node.args[0]).double(), held[name].double()
        dense = short(node) == "linear"

        def layer(weight: Tensor, node: Node = node, x: Tensor = x, dense: bool = dense) -> Tensor:
            out = _without_bias(node, x, weight)
            return out.flatten(0, -2) if dense else out

        found[name] = sums(layer, weights[name].double(), y.flatten(0, -2) if dense else y)
    return found


def short(node: Node) -> str:
    """The bare name of an operation: "conv2d" of "aten.conv2d.default"."""
    return node.operation.removeprefix("aten.").removeprefix("relprop.").partition(".")[0]


def _without_bias(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with other weights and no bias."""
    assert node.function is not None
    rest = [None, *node.args[3:]] if len(node.args) > 2 else []
    kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
    found: Tensor = node.function(x, weight, *rest, **kwargs)
    return found


def _layers(captured: Captured, method: str) -> tuple[dict[str, Node], frozenset[str]]:
    """The layers that have patterns, and those of them with a ReLU behind. Raises `InvalidInput` for any other operation."""
    data, readers = captured.facts.data, consumers(captured.graph)
    nodes = {node.name: node for node in captured.graph.nodes}
    layers, rectified = {}, set()
    for node in captured.graph.nodes:
        if node.kind != "call" or (
            Ref(node.name) not in data and not any(ref.name == node.name for ref in data)
        ):
            continue
        own = [ref for ref in refs((node.args, node.kwargs)) if ref in data]
        kind = OPS[node.operation].kind if node.operation in OPS else ""
        plain = len(node.args) > 1 and own == [node.args[0]] and isinstance(node.args[1], Ref)
        if short(node) in WEIGHTED and plain:
            layers[node.name] = node
            behind = [nodes[name] for name in readers.get(Ref(node.name), ()) if name in nodes]
            while (
                len(behind) == 1
                and OPS.get(behind[0].operation)
                and OPS[behind[0].operation].kind in ("batch_norm", "selection")
            ):
                behind = [nodes[name] for name in readers.get(Ref(behind[0].name), ()) if name in nodes]
            if behind and all(is_relu(one) for one in behind):
                rectified.add(node.name)
        elif not (
            is_relu(node)
            or kind in PASSING
            or (kind == "activation" and short(node) in ("dropout", "mul", "div"))
        ):
            raise InvalidInput(
                f"{method}: it has no rule for {node.operation}\n  at {node.where()}\n  do: use method='lrp'; patterns are for networks of layers with weights, ReLUs and pooling"
            )
    return layers, frozenset(rectified)


def _propagated(
    function: Differentiable, captured: Captured, patterns: Any, method: str, weigh: bool
) -> Found:
    if not isinstance(patterns, Patterns):
        raise InvalidInput(
            f"{method}: patterns are estimated from training inputs, and there are none\n"
            "  do: give patterns=relprop.patterns.Patterns(training_inputs)"
        )
    if len(function.sources) != 1 or function.companions or not function.graph.batched:
        raise InvalidInput(
            f"{method}: it is for models of one batched input of real numbers\n  do: use method='lrp'"
        )
    if function.weights is None:
        raise InvalidInput(
            f"{method}: a callable target has no output to start from\n  do: give a class, or weights of outputs"
        )
    layers, rectified = _layers(captured, method)
    found = patterns.of(function, layers, rectified)

    def changed(node: Node) -> Callable[..., Any] | None:
        if node.name not in layers:
            return None
        operation = node.function
        assert operation is not None

        def call(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
            other = found[node.name] * weight if weigh else found[node.name]
            way = _without_bias(node, x, other)
            value: Tensor = operation(x, weight, *rest, **named)
            return value.detach() + way - way.detach()

        return call

    start = function.weights * main_output(function.output)
    return function.gradients(changed=changed, extra=(start, *function.extra()[1:]))


def pattern_net(function: Differentiable, captured: Captured, patterns: Patterns | None = None) -> Found:
    """The signal: the output propagated back by patterns, ReLUs by their masks (Kindermans et al. 2018).

    patterns: `Patterns(training_inputs)`; kept in the object, so that they are estimated once.
    """
    return _propagated(function, captured, patterns, "pattern_net", False)


def pattern_attribution(
    function: Differentiable, captured: Captured, patterns: Patterns | None = None
) -> Found:
    """The attribution: the output propagated back by w ⊙ a (Kindermans et al. 2018). See `pattern_net`."""
    return _propagated(function, captured, patterns, "pattern_attribution", True)
