"""Normalisation, softmax and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.engine.frontends.onnx.table import Node, operator


@operator("BatchNormalization")
def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Batch normalisation with the statistics of the file."""
    if node["training_mode"]:
        raise node.refuse("training_mode")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, node["epsilon"])


@operator("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each sample by its own statistics."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=node["epsilon"])


@operator("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """All from an axis on by their mean and variance, which may be outputs too."""
    shape = x.shape[node["axis"] % x.dim() :]
    if scale.shape != shape:
        scale = scale.expand(shape)
    if bias is not None and bias.shape != shape:
        bias = bias.expand(shape)
    y = F.layer_norm(x, list(shape), scale, bias, node["epsilon"])
    if not any(node.outputs[1:]):
        return y
    axes = list(range(x.dim() - len(shape), x.dim()))
    return y, x.mean(axes, True), torch.rsqrt(x.var(axes, correction=0, keepdim=True) + node["epsilon"])


@operator("RMSNormalization")
def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """All from an axis on by their root mean square."""
    shape = x.shape[node["axis"] % x.dim() :]
    return F.rms_norm(x, list(shape), scale.expand(shape), node["epsilon"])


@operator("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Groups of channels by their mean and variance; operator sets before 21 scale groups, not channels."""
    groups = node["num_groups"]
    if node.version < 21:
        repeats = int(x.shape[1]) // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, groups, scale, bias, node["epsilon"])


@operator("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Tensor:
    """Divided by the norm along an axis."""
    size = torch.linalg.vector_norm(x, node["p"], node["axis"], True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


@operator("MeanVarianceNormalization")
def mean_variance_norm(node: Node, x: Tensor) -> Tensor:
    """Mean and variance over axes removed."""
    axes = node["axes"] or [0, 2, 3]
    if any(axis % x.dim() == 0 for axis in axes):
        raise node.refuse("statistics over the batch")
    centred = x - x.mean(axes, True)
    return centred / (centred.square().mean(axes, True).sqrt() + 1e-9)


@operator("LRN")
def local_response_norm(node: Node, x: Tensor) -> Tensor:
    """Local response normalisation over channels."""
    if node["size"] % 2 == 0:
        raise node.refuse(f"an even size, {node['size']}")
    return F.local_response_norm(x, node["size"], node["alpha"], node["beta"], node["bias"])


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax along an axis."""
    return torch.softmax(x, node["axis"])


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    """The logarithm of softmax along an axis."""
    return torch.log_softmax(x, node["axis"])


@operator("Attention")
def attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention over heads; queries, keys and values (B, H, T, D) or (B, T, H·D)."""
    if past_key is not None or past_value is not None or lengths is not None or any(node.outputs[1:]):
        raise node.refuse("a cache of keys and values, or the weights as an output")
    if node["softcap"] or node["qk_matmul_output_mode"]:
        raise node.refuse("softcap or qk_matmul_output_mode")
    if any(node[side] not in (None, -1) for side in ("left_window_size", "right_window_size")):
        raise node.refuse("a window of keys")
    flat = query.dim() == 3
    if flat:
        query = torch.unflatten(query, -1, (node["q_num_heads"], -1)).transpose(1, 2)
        key = torch.unflatten(key, -1, (node["kv_num_heads"], -1)).transpose(1, 2)
        value = torch.unflatten(value, -1, (node["kv_num_heads"], -1)).transpose(1, 2)
    scale = node["scale"] if node["scale"] is not None else 1 / math.sqrt(int(query.shape[-1]))
    causal = bool(node["is_causal"])
    if causal and mask is not None:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if mask.dtype == torch.bool:
            mask, causal = mask & allowed, False
        else:
            mask, causal = mask.masked_fill(~allowed, -math.inf), False
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, mask, 0.0, causal, scale=scale, enable_gqa=grouped
    )
    return output.transpose(1, 2).flatten(2) if flat else output


@operator("RotaryEmbedding")
def rotary(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Any:
    """Rotary position embedding of queries or keys, (B, H, T, D) or (B, T, H·D)."""
    flat = x.dim() == 3
    y = torch.unflatten(x, -1, (node["num_heads"], -1)).transpose(1, 2) if flat else x
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    size = node["rotary_embedding_dim"] or int(y.shape[-1])
    turned, rest = y[..., :size], y[..., size:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if node["interleaved"]:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    y = torch.cat((turned, rest), -1) if rest.shape[-1] else turned
    return y.transpose(1, 2).flatten(2) if flat else y
