"""Rewrites of the captured graph that leave its output as it is; the user's model is never written.

`REWRITES` lists them in order: each is a function `Graph -> Graph` whose result computes the same output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from relprop.engine.biases import fuse_biases, unify_normalisations
from relprop.engine.curves import unify_activations, unify_softmax
from relprop.engine.experts import unify_experts
from relprop.engine.graph import (
    Graph,
    Meta,
    Node,
    Ref,
    arguments_of,
    consumers,
    map_output,
    meta_of,
    parents,
    replace_refs,
)
from relprop.engine.ids import recode_ids
from relprop.engine.joint import join_linears
from relprop.engine.norms import unify_group_norms, unify_norms
from relprop.engine.parts import join_picks
from relprop.engine.spectra import fuse_complex
from relprop.engine.synonyms import bounds_as_clamps, kept_dimensions, merge_twins, plain_einsums

aten = torch.ops.aten


def drop_dead(graph: Graph) -> Graph:
    """Without the nodes that nothing reads (inputs stay)."""
    needed = {ref.name for ref in graph.outputs()}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in needed or node.kind == "input":
            kept.append(node)
            needed.update(ref.name for ref in parents(node))
    return dataclasses.replace(graph, nodes=tuple(reversed(kept)))


def sizes_before_products(graph: Graph) -> Graph:
    """A size that a linear operation has from its input is read there, so that what follows it stays its only reader."""
    nodes = {node.name: node for node in graph.nodes}

    def source(ref: Ref, dimension: int) -> Ref:
        node = nodes[ref.name]
        before = node.args[0] if node.args else None
        if not isinstance(before, Ref) or not node.operation.startswith(_FROM_INPUT):
            return ref
        own, given = meta_of(nodes, ref), meta_of(nodes, before)
        if own is None or given is None or len(own.shape) != len(given.shape):
            return ref
        kept = dimension == 0 if "conv" in node.operation else dimension < len(own.shape) - 1
        weight = meta_of(nodes, node.args[1])
        if "matmul" in node.operation and (weight is None or len(weight.shape) != 2):
            return ref
        return source(before, dimension) if kept else ref

    read = (
        dataclasses.replace(node, args=(source(*node.args), node.args[1]))
        if node.operation == "aten.sym_size.int"
        else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=tuple(read))


_FROM_INPUT = ("aten.linear.", "aten.matmul.", "aten.mm.", "aten.conv1d.", "aten.conv2d.", "aten.conv3d.")


def padded_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pad: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """Convolution of the zero-padded input; `pad` as in `torch.nn.functional.pad`, each side on its own."""
    return aten.convolution(  # type: ignore[no-any-return]
        aten.constant_pad_nd(x, pad, 0),
        weight.to(x.dtype),  # under autocast x may have come in half precision
        None if bias is None else bias.to(x.dtype),
        stride,
        [0] * len(stride),
        dilation,
        False,
        [0] * len(stride),
        groups,
    )


def merge_paddings(graph: Graph) -> Graph:
    """A zero padding of a zero padding is one."""
    nodes = {node.name: node for node in graph.nodes}

    def merged(node: Node) -> Node:
        source = nodes[node.args[0].name] if zero_padding(node) else node
        inner, outer = zero_padding(source), zero_padding(node)
        if source is node or inner is None or outer is None:
            return node
        length = max(len(inner), len(outer))
        widths = [a + b for a, b in zip(*(w + [0] * (length - len(w)) for w in (inner, outer)), strict=True)]
        return dataclasses.replace(node, args=(source.args[0], widths, *node.args[2:]))

    result = []
    for node in graph.nodes:
        nodes[node.name] = merged(node)
        result.append(nodes[node.name])
    return drop_dead(dataclasses.replace(graph, nodes=tuple(result)))


def fuse_padding(graph: Graph) -> Graph:
    """A zero padding that only convolutions read becomes a part of them, so that a rule never hands it relevance."""
    readers = consumers(graph)
    nodes = {node.name: node for node in graph.nodes}
    result: list[Node] = []
    for node in graph.nodes:
        conv = convolution_arguments(node)
        source = nodes.get(node.args[0].name) if conv and isinstance(node.args[0], Ref) else None
        pad = zero_padding(source) if source is not None else None
        if conv is None or conv["transposed"] or source is None or pad is None:
            result.append(node)
            continue
        if not all(
            convolution_arguments(nodes[name]) if name in nodes else False
            for name in readers[Ref(source.name)]
        ):
            result.append(node)
            continue
        own = [p for size in reversed(conv["padding"]) for p in (size, size)]
        unbatched = isinstance(node.meta, Meta) and len(node.meta.shape) < len(own) // 2 + 2
        if unbatched or any(pad[len(own) :]):  # zeros as channels are what a rule may hand relevance to
            result.append(node)
            continue
        pad = pad[: len(own)]
        sides = [a + b for a, b in zip(own, pad + [0] * (len(own) - len(pad)), strict=True)]
        args = (
            source.args[0],
            node.args[1],
            conv["bias"],
            sides,
            conv["stride"],
            conv["dilation"],
            conv["groups"],
        )
        result.append(dataclasses.replace(node, function=padded_convolution, args=args, kwargs={}))
    return drop_dead(dataclasses.replace(graph, nodes=tuple(result)))


def zero_padding(node: Node) -> list[int] | None:
    """The widths of a constant padding by zeros with nothing cut off; None for every other node."""
    if str(node.function) not in ("aten.pad.default", "aten.constant_pad_nd.default"):
        return None
    rest = list(node.args[2:]) + list(node.kwargs.values())
    mode = next((value for value in rest if isinstance(value, str)), "constant")
    value = next((value for value in rest if isinstance(value, (int, float))), 0)
    widths = node.args[1]
    literal = all(isinstance(width, int) and width >= 0 for width in widths)
    return list(widths) if mode == "constant" and value == 0 and literal else None


def convolution_arguments(node: Node) -> dict[str, Any] | None:
    """The arguments of a convolution under one set of names, whatever its spelling; None for other operations."""
    name = str(node.function)
    if name == "aten.convolution.default":
        names = (
            "input",
            "weight",
            "bias",
            "stride",
            "padding",
            "dilation",
            "transposed",
            "output_padding",
            "groups",
        )
        return dict(zip(names, node.args, strict=True))
    if not name.startswith(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose")):
        return None
    found = arguments_of(node)
    found["transposed"] = "transpose" in name
    found.setdefault("output_padding", [0])
    rank = 1 if "1d" in name else 2 if "2d" in name else 3
    for key in ("stride", "padding", "dilation", "output_padding"):
        if isinstance(found[key], (list, tuple)) and len(found[key]) == 1:
            found[key] = list(found[key]) * rank
        elif isinstance(found[key], int):
            found[key] = [found[key]] * rank
    if isinstance(found["padding"], str):
        return None
    return found


def folded_weight(
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    variance: torch.Tensor,
    eps: float,
    dim: int,
    groups: int,
) -> torch.Tensor:
    """The weight of a linear operation with the batch normalisation behind it: W' = s·W, s = γ/√(σ²+eps)."""
    factor = torch.rsqrt(variance + eps) if scale is None else scale * torch.rsqrt(variance + eps)
    if dim == 0:
        return weight * factor.reshape(-1, *[1] * (weight.dim() - 1)).to(weight.dtype)
    blocks = (
        factor.reshape(groups, 1, -1)
        .expand(groups, weight.shape[0] // groups, -1)
        .reshape(weight.shape[0], -1)
    )
    return weight * blocks.reshape(*blocks.shape, *[1] * (weight.dim() - 2)).to(weight.dtype)


def folded_bias(
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """The bias of a linear operation with the batch normalisation behind it: b' = (b − μ)·s + β."""
    factor = torch.rsqrt(variance + eps) if scale is None else scale * torch.rsqrt(variance + eps)
    result = (-mean if bias is None else bias - mean) * factor
    return result if shift is None else result + shift


def fold_batch_norm(graph: Graph) -> Graph:
    """Batch normalisation directly behind a linear or convolution becomes a part of it, where that is exact.

    Exact means: the linear operation's output is read by the normalisation alone, its weight is a parameter, and the
    statistics are the running ones. Normalisation in front of a convolution stays: padding would make a fold wrong.
    """
    readers = consumers(graph)
    nodes = {node.name: node for node in graph.nodes}
    result: list[Node] = []
    renamed: dict[Ref, Ref] = {}
    for node in graph.nodes:
        if any(ref in renamed for ref in parents(node)):
            node = dataclasses.replace(
                node,
                args=replace_refs(node.args, lambda ref: renamed.get(ref, ref)),
                kwargs=replace_refs(node.kwargs, lambda ref: renamed.get(ref, ref)),
            )
            nodes[node.name] = node
        norm = batch_norm_arguments(node)
        before = nodes.get(node.args[0].name) if norm and isinstance(node.args[0], Ref) else None
        place = _weight_place(before) if before is not None else None
        if norm is None or before is None or place is None or readers[Ref(before.name)] != [node.name]:
            result.append(node)
            continue
        weight, bias, dim, groups = place
        scale, shift, mean, variance, eps = norm
        context: dict[str, Any] = {
            "module": before.module,
            "module_class": before.module_class,
            "calls": before.calls,
            "source": before.source,
        }
        new_weight = Node(
            f"{before.name}_folded_weight", "call", folded_weight, (weight, scale, variance, eps, dim, groups),
            meta=meta_of(nodes, weight), **context,
        )  # fmt: skip
        new_bias = Node(
            f"{before.name}_folded_bias", "call", folded_bias, (bias, scale, shift, mean, variance, eps),
            meta=meta_of(nodes, mean), **context,
        )  # fmt: skip
        result.remove(before)
        fused = _with_weight(before, Ref(new_weight.name), Ref(new_bias.name))
        fused = dataclasses.replace(fused, calls=(*before.calls, *node.calls), folded=node.name)
        nodes[fused.name] = fused
        result += [new_weight, new_bias, fused]
        for old in (Ref(node.name), Ref(node.name, 0)):
            renamed[old] = Ref(fused.name)
    output = map_output(graph.output, lambda ref: renamed.get(ref, ref))
    return drop_dead(dataclasses.replace(graph, nodes=tuple(result), output=output))


def unify_batch_norm(graph: Graph) -> Graph:
    """Instance normalisation by running statistics is the batch normalisation that it is in eval mode."""
    nodes = (
        dataclasses.replace(node, function=aten.batch_norm.default)
        if node.function is aten.instance_norm.default and len(node.args) == 9 and node.args[5] is False
        else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=tuple(nodes))


def batch_norm_arguments(node: Node) -> tuple[Any, Any, Any, Any, float] | None:
    """Scale, shift, mean, variance and eps of a batch normalisation by running statistics; None for other operations."""
    name, args = str(node.function), node.args
    if name == "aten.batch_norm.default" and not args[5] and args[3] is not None:
        return args[1], args[2], args[3], args[4], args[7]
    if name == "aten._native_batch_norm_legit_no_training.default":
        return args[1], args[2], args[3], args[4], args[6]
    if (
        name in ("aten.native_batch_norm.default", "aten.cudnn_batch_norm.default")
        and not args[5]
        and args[3] is not None
    ):
        return args[1], args[2], args[3], args[4], args[7]
    return None


def _weight_place(node: Node) -> tuple[Any, Any, int, int] | None:
    """Weight, bias, output dimension of the weight and groups of a linear operation that a normalisation folds into."""
    if node.function is padded_convolution:
        return (node.args[1], node.args[2], 0, node.args[6]) if isinstance(node.args[1], Ref) else None
    if str(node.function) == "aten.linear.default":
        bias = node.args[2] if len(node.args) > 2 else None
        meta = (
            node.meta
        )  # a linear's normalised channels are its last dimension only where the output is (B, C)
        return (node.args[1], bias, 0, 1) if isinstance(meta, Meta) and len(meta.shape) == 2 else None
    conv = convolution_arguments(node)
    if conv is None or not isinstance(conv["weight"], Ref):
        return None
    return conv["weight"], conv["bias"], 1 if conv["transposed"] else 0, conv["groups"]


def _with_weight(node: Node, weight: Ref, bias: Ref) -> Node:
    args = [*node.args, None][: max(3, len(node.args))]
    args[1:3] = [weight, bias]
    kwargs = {key: value for key, value in node.kwargs.items() if key not in ("weight", "bias")}
    return dataclasses.replace(node, args=tuple(args), kwargs=kwargs)


IN_ANY_ORDER = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
}
"""Another shape for the same values, from the operation that goes by their order in memory to the one that does not."""


def reshape_views(graph: Graph) -> Graph:
    """Views as reshapes: values may lie in another order in memory than those that were captured."""
    nodes = (
        dataclasses.replace(node, function=IN_ANY_ORDER[node.function])
        if node.function in IN_ANY_ORDER
        else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=tuple(nodes))


REWRITES: list[Callable[[Graph], Graph]] = [
    drop_dead,
    sizes_before_products,
    kept_dimensions,
    merge_twins,
    bounds_as_clamps,
    plain_einsums,
    unify_activations,
    unify_softmax,
    unify_norms,
    unify_group_norms,
    unify_experts,
    recode_ids,
    fuse_complex,
    unify_normalisations,
    fuse_biases,
    join_linears,
    merge_paddings,
    fuse_padding,
    unify_batch_norm,
    fold_batch_norm,
    reshape_views,
    join_picks,
    drop_dead,
]


def canonise(graph: Graph, fold: bool = True) -> Graph:
    """All rewrites in order; without `fold`, batch normalisation stays an operation of its own."""
    for rewrite in REWRITES:
        if fold or rewrite is not fold_batch_norm:
            graph = rewrite(graph)
    return graph
