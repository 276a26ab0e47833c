"""Explanations by gradients: gradient, sensitivity, gradient × input, deconvolution, guided backpropagation, Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.differentiable import Differentiable
from relprop.engine.graph import Meta, Node, Ref, consumers
from relprop.engine.ops import OPS
from relprop.errors import InvalidInput
from relprop.explain import Captured, places

Found = tuple[Tensor, ...]
"""Relevance at each source of a `Differentiable`."""


def gradient(function: Differentiable) -> Found:
    """∂f/∂x. Of token ids, at their embeddings."""
    return function.gradients()


def sensitivity(function: Differentiable) -> Found:
    """(∂f/∂x)² (Simonyan et al. 2014; Montavon et al. 2018): its sum is the gradient's squared norm."""
    return tuple(g**2 for g in function.gradients())


def gradient_x_input(function: Differentiable) -> Found:
    """x ∂f/∂x (Shrikumar et al. 2016). Equals LRP-0 where the network is piecewise linear."""
    return tuple(g * x for g, x in zip(function.gradients(), function.points, strict=True))


class _Rectified(torch.autograd.Function):
    """ReLU that lets only positive gradients back: all of them, or those of units that are on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], Tensor], guided: bool) -> Tensor:
        """The operation's own value."""
        y = compute(x)
        ctx.save_for_backward(x)
        ctx.guided = guided
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """R⁺, or 1[z > 0] R⁺."""
        (x,) = ctx.saved_tensors
        kept = grads[0].clamp(min=0)
        return (kept * (x > 0) if ctx.guided else kept), None, None


def is_relu(node: Node) -> bool:
    """Whether a node is a ReLU, under any of its names."""
    name = node.operation.removeprefix("aten.").partition(".")[0]
    rest = [*node.args[1:], *node.kwargs.values()]
    if name in ("relu", "relu_"):
        return True
    if name in ("clamp_min", "clamp_min_"):
        return rest == [0]
    if name in ("hardtanh", "hardtanh_", "clamp", "clamp_", "relu6"):
        return name == "relu6" or (bool(rest) and rest[0] == 0)
    return name in ("threshold", "threshold_") and rest[:2] == [0, 0]


def _rectified(guided: bool, name: str) -> Callable[[Differentiable], Found]:
    def method(function: Differentiable) -> Found:
        if not any(is_relu(node) for node in function.graph.nodes if node.kind == "call"):
            raise InvalidInput(
                f"method: {name} changes nothing but ReLUs, and this model has none: it would be the plain gradient\n"
                "  do: use method='gradient', or 'lrp'"
            )

        def changed(node: Node) -> Callable[..., Any] | None:
            if node.kind != "call" or not is_relu(node):
                return None
            operation = node.function
            assert operation is not None

            def relu(x: Tensor, *rest: Any, **named: Any) -> Any:
                return _Rectified.apply(x, lambda value: operation(value, *rest, **named), guided)

            return relu

        return function.gradients(changed=changed)

    method.__name__ = name
    return method


deconvolution = _rectified(False, "deconvolution")
guided_backprop = _rectified(True, "guided_backprop")


def grad_cam(function: Differentiable, captured: Captured, layer: str | None = None) -> Found:
    """Grad-CAM (Selvaraju et al. 2017): ReLU(Σ_k α_k A_k), α_k the mean of ∂f/∂A_k, enlarged to the input's size.

    `layer`: the path of the module whose output is A, (B, C, …); by default the values behind the last convolution.
    The map is shared equally by the input's channels, so that their sum is the map.
    """
    if len(function.sources) != 1 or function.points[0].dim() < 3:
        raise InvalidInput(
            "method: grad_cam makes a map over places, and needs one input (B, C, …) of an image, a series or a volume\n"
            "  do: use method='gradient_x_input' or 'lrp'"
        )
    (x,) = function.points
    node = _layer(captured, layer)
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        scores, values = function.run((point, *function.extra()), keep=frozenset({node.name}))
        held = values[node.name]
        if held.dim() != x.dim():
            raise InvalidInput(
                f"layer: the output of {layer!r} has shape {tuple(held.shape)}, the input {tuple(x.shape)}: no map over places\n"
                "  do: give a module whose output has channels and the same number of dimensions"
            )
        (slopes,) = torch.autograd.grad(scores.sum(), held, allow_unused=True)
    slopes = torch.zeros_like(held) if slopes is None else slopes
    positions = tuple(range(2, held.dim()))
    cam = (slopes.mean(positions, keepdim=True) * held.detach()).sum(1, keepdim=True).clamp(min=0)
    modes = {3: "linear", 4: "bilinear", 5: "trilinear"}
    enlarged = F.interpolate(cam, size=x.shape[2:], mode=modes[x.dim()], align_corners=False)
    return ((enlarged / x.shape[1]).expand_as(x).clone(),)


def _layer(captured: Captured, layer: str | None) -> Node:
    """The node whose value Grad-CAM weighs."""
    nodes = {node.name: node for node in captured.graph.nodes}
    if layer is not None:
        found = places(captured, layer)[-1]
        if len(found) != 1 or found[0].index is not None:
            raise InvalidInput(f"layer: {layer!r} has {len(found)} outputs\n  do: give a module with one")
        return nodes[found[0].name]
    convolutions = [
        node
        for node in captured.graph.nodes
        if Ref(node.name) in captured.facts.data
        and node.operation in OPS
        and OPS[node.operation].kind == "convolution"
        and isinstance(node.meta, Meta)
        and len(node.meta.shape) >= 3
    ]
    if not convolutions:
        raise InvalidInput(
            "method: grad_cam weighs the channels of a convolution, and this model has none\n"
            "  do: name a module with channels and places: layer='…', or use another method"
        )
    node = convolutions[-1]
    shape = node.meta.shape if isinstance(node.meta, Meta) else ()
    readers = consumers(captured.graph)
    while True:  # on through the activation, the norm and the sum behind it, while the shape stays
        following = [nodes[name] for name in readers.get(Ref(node.name), ()) if name in nodes]
        if len(following) != 1:
            return node
        after = following[0]
        kind = OPS[after.operation].kind if after.operation in OPS else ""
        same = isinstance(after.meta, Meta) and after.meta.shape == shape
        if not same or kind not in ("activation", "batch_norm", "norm", "addition", "product"):
            return node
        node = after
