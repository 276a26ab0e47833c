"""Where the time of an explanation goes: the kernels of a call by kind, beside those of gradient × input."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

from timing.clock import Call, wait

_LISTS = {
    "convolutions forward": (
        "mkldnn_convolution _slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d slow_conv_transpose2d "
        "convolution_overrideable _conv_depthwise2d cudnn_convolution cudnn_convolution_transpose"
    ),
    "convolutions backward": "convolution_backward _slow_conv2d_backward cudnn_convolution_backward",
    "matrix products, attention": (
        "mm addmm bmm baddbmm addbmm mv addmv dot mkldnn_rnn_layer mkldnn_rnn_layer_backward _cudnn_rnn "
        "_cudnn_rnn_backward _softmax _softmax_backward_data _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_efficient_attention_backward _flash_attention_forward _flash_attention_backward "
        "_efficient_attention_forward _efficient_attention_backward"
    ),
    "normalisation": (
        "native_batch_norm native_batch_norm_backward cudnn_batch_norm cudnn_batch_norm_backward native_layer_norm "
        "native_layer_norm_backward native_group_norm native_group_norm_backward rsqrt"
    ),
    "pooling": (
        "max_pool2d_with_indices max_pool2d_with_indices_backward avg_pool2d avg_pool2d_backward "
        "_adaptive_avg_pool2d _adaptive_avg_pool2d_backward max_unpool2d"
    ),
    "elementwise": (
        "add sub rsub mul div neg abs sign sgn copysign reciprocal sqrt pow exp log erf tanh sigmoid gelu silu relu "
        "threshold hardtanh hardswish hardsigmoid clamp clamp_min clamp_max maximum minimum where eq ne lt le gt ge "
        "logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not addcmul addcdiv lerp nan_to_num isnan "
        "isinf isfinite masked_fill square floor round tanh_backward gelu_backward sigmoid_backward silu_backward "
        "threshold_backward hardtanh_backward hardswish_backward hardsigmoid_backward native_dropout"
    ),
    "sums": "sum mean amax amin max min all any norm linalg_vector_norm cumsum prod argmax",
    "copies": (
        "copy fill zero cat index index_select index_put gather scatter scatter_add embedding_dense_backward repeat "
        "constant_pad_nd slice_backward select_backward roll flip tril triu arange empty empty_strided resize"
    ),
}
GROUPS = {group: tuple(names.split()) for group, names in _LISTS.items()}
"""Kinds of work and the ATen operations that do it, whose own time is that of their kernels. What is in none of them only
looks at memory in another way, or calls those that are."""

_KERNELS = frozenset(name for names in GROUPS.values() for name in names)


@dataclass(frozen=True, slots=True)
class Profile:
    """Of one call: seconds of its kernels by operation, how many there are, those of the whole call on the wall, and its
    floating point operations in products and convolutions."""

    times: Mapping[str, float]
    kernels: int
    wall: float
    operations: int

    @property
    def seconds(self) -> float:
        """The sum of the kernels' times."""
        return sum(self.times.values())

    def beside(self, other: Profile) -> dict[str, Any]:
        """As parts of another call's kernels, in hundredths."""
        parts = {name: 100 * own / other.seconds for name, own in self.times.items()}
        largest = sorted(parts, key=parts.__getitem__, reverse=True)[:12]
        return {
            "groups": {group: sum(parts.get(name, 0.0) for name in names) for group, names in GROUPS.items()},
            "largest": {name: parts[name] for name in largest},
            "kernels": self.kernels,
            "kernels' seconds": self.seconds,
            "wall over kernels": self.wall / self.seconds,
            "arithmetic": self.operations / max(1, other.operations),
        }


def profiles(calls: dict[str, Call], rounds: int, device: str = "cpu") -> dict[str, Profile]:
    """The profile of each call: its time on the wall without a profiler, the median over rounds that take every call once, and
    the times of its kernels in one call with it, which takes the profiler several times as long to read as to run."""
    counted = {}
    for name, call in calls.items():
        call()
        counted[name] = operations(call)
    walls: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            walls[name].append(time.perf_counter() - start)
    return {
        name: Profile(*kernels(call, device), statistics.median(walls[name]), counted[name])
        for name, call in calls.items()
    }


def kernels(call: Call, device: str = "cpu") -> tuple[Counter[str], int]:
    """Seconds of a call's kernels by operation, and how many there were.

    Only the time that an operation spends in itself counts, and only that of the operations in `GROUPS`: what the profiler
    adds to each operation falls on those that call others.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start and stop
    on_cuda = device.startswith("cuda")
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
        activities=[activity.CPU, activity.CUDA] if on_cuda else [activity.CPU]
    ) as measured:
        call()
        wait(device)
    times: Counter[str] = Counter()
    count = 0
    for row in measured.key_averages():
        name = operation_of(row.key)
        if name in _KERNELS:
            times[name] += (row.self_device_time_total if on_cuda else row.self_cpu_time_total) / 1e6
            count += row.count
    return times, count


def operation_of(key: str) -> str:
    """The name of an ATen operation, the one that writes to its argument as the one that does not; "" for what is none."""
    return key.removeprefix("aten::").removesuffix("_") if key.startswith("aten::") else ""


def operations(call: Call) -> int:
    """Floating point operations of a call in convolutions, products of matrices, attention and LSTMs."""
    counter = _Operations()
    with counter:
        call()
    return counter.total


class _Operations(TorchDispatchMode):
    """Adds up what torch's formulas say of each operation. torch's own counter hooks modules, which a gradient with respect
    to an input alone does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        result = function(*args, **(kwargs or {}))
        formula = _FORMULAS.get(function._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def _lstm(x: Any, of_input: Any, of_state: Any, *_: Any, **__: Any) -> int:
    """(T, B, I) with weights (4H, I) and (4H, H)."""
    return 2 * int(x[0]) * int(x[1]) * int(of_input[0]) * (int(of_input[1]) + int(of_state[1]))


def _lstm_backward(*shapes: Any, **named: Any) -> int:
    """Towards the input and the weights, which it cannot do without."""
    return 2 * _lstm(*shapes)


_ATEN = torch.ops.aten
_FORMULAS = flop_registry | {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
    _ATEN.mkldnn_rnn_layer: shape_wrapper(_lstm),
    _ATEN.mkldnn_rnn_layer_backward: shape_wrapper(_lstm_backward),
}
"""torch's, and those of operations that it has none for."""
