"""The settings of a convolution, whatever its spelling, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import convolution_arguments, padded_convolution
from relprop.engine.graph import refs
from relprop.engine.looks import traced
from relprop.engine.step import Step, is_dense

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution without its data: `sides` is zero padding, each side on its own, on top of `padding`."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int
    sides: list[int]

    def apply(self, x: Tensor, w: Tensor | None) -> Tensor:
        """The convolution of x, batched or not, with the weight w."""
        batched = x.dim() == len(self.stride) + 2
        y = aten.convolution(self._padded(x if batched else x[None]), w, None, *self._rest())
        return y if batched else y[0]  # type: ignore[no-any-return]

    def transpose(self, x: Tensor, v: Tensor, w: Tensor | None) -> Tensor:
        """Its adjoint: the backward pass to an input of x's size."""
        batched = x.dim() == len(self.stride) + 2
        like, v = x if batched else x[None], v if batched else v[None]
        channels = like.shape[1] if self.transposed or w is None else w.shape[1] * self.groups
        size = self._padded_size(like.shape[2:])
        if (v.shape[0], channels, *size) != like.shape or not is_dense(like):  # only its size matters
            like = _of_size(v, (v.shape[0], channels, *size), like)
        grad: Tensor = aten.convolution_backward(v, like, w, None, *self._rest(), [True, False, False])[0]
        for dim, length in enumerate(x.shape[2 if batched else 1 :], 2) if any(self.sides) else ():
            grad = grad.narrow(dim, self.sides[2 * (grad.dim() - 1 - dim)], length)
        return grad if batched else grad[0]

    def _padded_size(self, size: Sequence[int]) -> list[int]:
        """The lengths of an input's dimensions (the last ones first in `sides`) with its zeros on both sides."""
        ends = self.sides[::-1]
        return [length + sum(ends[2 * i : 2 * i + 2]) for i, length in enumerate(size)]

    def _padded(self, x: Tensor) -> Tensor:
        return aten.constant_pad_nd(x, self.sides, 0) if any(self.sides) else x

    def _rest(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups


def _of_size(v: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor whose values nobody reads, with its channels last in memory where those of `like` are: the adjoint goes by
    that. In v's memory where it fits: new memory would push what is freed out of the allocator's hands."""
    count = prod(shape)
    last = _FORMATS.get(len(shape))
    if last is not None and not like.is_contiguous() and like[:1].is_contiguous(memory_format=last):
        return torch.empty(shape, dtype=v.dtype, device=v.device, memory_format=last)
    if traced() or not v.is_contiguous() or v.numel() < count:
        return v.new_empty(shape)
    return v.view(-1)[:count].view(shape)


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def convolution_of(step: Step) -> Convolution:
    """The settings of a convolution, whatever its spelling."""
    if "convolution" in step.settings:
        return step.settings["convolution"]  # type: ignore[no-any-return]
    found = _convolution_of(step)
    rest = {name: value for name, value in step.node.kwargs.items() if name not in _TENSORS}
    if not any(refs((step.node.args[3:], rest))):  # a number of groups may be that of the samples
        step.settings["convolution"] = found
    return found


_TENSORS = ("input", "weight", "bias")


def _convolution_of(step: Step) -> Convolution:
    rank = step.args[1].dim() - 2
    zeros = [0] * rank
    if step.function is padded_convolution:
        sides, stride, dilation, groups = step.args[3:]
        return Convolution(stride, zeros, dilation, False, zeros, groups, sides)
    found = convolution_arguments(replace(step.node, args=step.args, kwargs=step.kwargs))
    if found is not None:
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        return Convolution(**{name: found[name] for name in names}, sides=[0] * 2 * rank)

    def full(position: int, name: str) -> list[int]:
        value = step.arg(position, name, [1])
        return [value] * rank if isinstance(value, int) else list(value) * (rank if len(value) == 1 else 1)

    stride, dilation, kernel = full(3, "stride"), full(5, "dilation"), step.args[1].shape[2:]
    sides = []
    if step.arg(4, "padding") == "same":  # an odd amount has its larger half on the far side
        for total in (d * (k - 1) for d, k in zip(reversed(dilation), reversed(kernel), strict=True)):
            sides += [total // 2, total - total // 2]
    return Convolution(
        stride, zeros, dilation, False, zeros, step.arg(6, "groups", 1), sides or [0] * 2 * rank
    )
