"""Explanations by asking the model many times: integrated gradients, SmoothGrad, occlusion, Shapley values.

The samplers are captum's (extra `methods`), on the function that `differentiable` makes of the captured graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.differentiable import Differentiable
from relprop.engine.isolate import cuda_devices
from relprop.errors import InvalidInput, MissingExtra

Found = tuple[Tensor, ...]
"""Relevance at each source of a `Differentiable`."""

ROWS = 32
"""How many changed inputs run through the model at a time."""

Fill = float | Tensor
"""What stands for a missing value: a number, or a tensor that broadcasts to one sample."""


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise MissingExtra("this method samples with captum\n  do: pip install 'relprop[methods]'") from error
    return captum.attr


def _positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{name}: {value!r} is no number above 0\n  do: give a whole number such as 25")


def filled(function: Differentiable, fill: Fill, name: str) -> Found:
    """The points with every value missing."""
    try:
        return tuple(
            torch.as_tensor(fill, dtype=point.dtype, device=point.device).expand(point.shape).clone()
            for point in function.points
        )
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(point.shape[1:])) for point in function.points)
        raise InvalidInput(
            f"{name}: {tuple(torch.as_tensor(fill).shape)} does not broadcast to a sample of shape {shapes}\n"
            "  do: give a number, or one value a channel: (C, 1, 1)"
        ) from error


def integrated_gradients(
    function: Differentiable, baseline: Fill = 0.0, steps: int = 50, quadrature: str = "gausslegendre"
) -> Found:
    """(x − x′) ∫ ∂f/∂x (x′ + t (x − x′)) dt (Sundararajan et al. 2017): its sum is f(x) − f(x′), up to the quadrature.

    Args:
        baseline: x′, a number or a tensor that broadcasts to a sample.
        steps: points of the quadrature.
        quadrature: captum's names: "gausslegendre", "riemann_middle", "riemann_trapezoid", "riemann_left", "riemann_right".
    """
    _positive("steps", steps)
    known = ("gausslegendre", "riemann_middle", "riemann_trapezoid", "riemann_left", "riemann_right")
    if quadrature not in known:
        raise InvalidInput(f"quadrature: {quadrature!r} is unknown\n  do: one of {', '.join(known)}")
    found = (
        _captum()
        .IntegratedGradients(function.scores, multiply_by_inputs=True)
        .attribute(
            function.points,
            baselines=filled(function, baseline, "baseline"),
            additional_forward_args=function.extra(),
            n_steps=steps,
            method=quadrature,
            internal_batch_size=max(ROWS, len(function.score)),
        )
    )
    return tuple(part.detach().to(point.dtype) for part, point in zip(found, function.points, strict=True))


def smoothgrad(
    function: Differentiable, noise: float = 0.15, samples: int = 25, seed: int = 0
) -> tuple[Found, Found]:
    """The mean gradient at noisy copies of the input (Smilkov et al. 2017), and its standard error.

    Every sample gets the same draws, so that its values do not depend on what else is in the batch.

    Args:
        noise: the deviation of the noise, as a part of each sample's range, max x − min x.
        samples: how many copies.
        seed: of the noise.
    """
    _positive("samples", samples)
    if not noise >= 0:
        raise InvalidInput(
            f"noise: {noise!r} is negative\n  do: give a part of the input's range, such as 0.15"
        )
    generator = torch.Generator().manual_seed(seed)
    spread = [noise * _range(point) for point in function.points]

    def draw() -> Found:
        noisy = [
            point
            + deviation * torch.randn(point.shape[1:], generator=generator, dtype=torch.float64).to(point)
            for point, deviation in zip(function.points, spread, strict=True)
        ]
        return function.gradients(*noisy)

    return _mean_and_error([draw() for _ in range(samples)])


def _range(point: Tensor) -> Tensor:
    rows = point.flatten(1)
    return (rows.amax(1) - rows.amin(1)).reshape(-1, *[1] * (point.dim() - 1))


def _mean_and_error(draws: Sequence[Found]) -> tuple[Found, Found]:
    """The mean of draws and the standard error of it (0 for a single one)."""
    stacked = [torch.stack(column) for column in zip(*draws, strict=True)]
    mean = tuple(column.mean(0) for column in stacked)
    if len(draws) == 1:
        return mean, tuple(torch.zeros_like(part) for part in mean)
    return mean, tuple(column.std(0) / math.sqrt(len(draws)) for column in stacked)


def occlusion(
    function: Differentiable,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    fill: Fill = 0.0,
    progress: bool = False,
) -> Found:
    """f(x) − f(x with a window replaced), for every value that the window covers (Zeiler and Fergus 2014).

    A value that several windows cover gets the mean of their drops, as captum has it, so that nothing adds up to f. Of token ids the window is one
    token, its embedding replaced.

    Args:
        window: its size: one number for all dimensions of places, or one for each dimension after the batch. By
            default all channels and a fourteenth of each side of an image; one value of a table.
        stride: between windows; by default the window's size.
        fill: what replaces the window.
    """
    windows = [_window(point, window, function.graph, name) for point, name in zip(function.points, function.sources, strict=True)]  # fmt: skip
    strides = windows if stride is None else [_strides(point, stride, w) for point, w in zip(function.points, windows, strict=True)]  # fmt: skip
    with torch.no_grad():
        found = (
            _captum()
            .Occlusion(function.scores)
            .attribute(
                function.points,
                sliding_window_shapes=tuple(windows),
                strides=tuple(strides),
                baselines=filled(function, fill, "fill"),
                additional_forward_args=function.extra(),
                perturbations_per_eval=max(1, ROWS // len(function.score)),
                show_progress=progress,
            )
        )
    return tuple(
        (part / _folded(function, name, point)).to(point.dtype)
        for part, name, point in zip(found, function.sources, function.points, strict=True)
    )


def _folded(function: Differentiable, name: str, point: Tensor) -> int:
    """How many values of a source are summed into one relevance: an embedding's dimensions into that of its token."""
    return point.shape[-1] if function.graph[name].kind == "call" else 1


def _window(point: Tensor, window: int | Sequence[int] | None, graph: Any, name: str) -> tuple[int, ...]:
    sizes = tuple(point.shape[1:])
    if graph[name].kind == "call":  # an embedding: one token, all of its dimensions
        return (*[1] * (len(sizes) - 1), sizes[-1]) if window is None or (isinstance(window, int) and window == 1) else _checked(window, sizes)  # fmt: skip
    if window is None:
        return sizes[:1] + tuple(max(1, -(-size // 14)) for size in sizes[1:]) if len(sizes) > 1 else (1,)
    return _checked(window, sizes)


def _checked(window: int | Sequence[int], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """A window in full: all channels where one number is given."""
    full = (
        (sizes[:1] + (window,) * (len(sizes) - 1) if len(sizes) > 1 else (window,))
        if isinstance(window, int)
        else tuple(window)
    )
    if len(full) != len(sizes) or not all(1 <= w <= size for w, size in zip(full, sizes, strict=True)):
        raise InvalidInput(
            f"window: {window!r} does not fit a sample of shape {sizes}\n"
            "  do: give one number for all places, or one for each dimension after the batch, 1 to its size"
        )
    return full


def _strides(point: Tensor, stride: int | Sequence[int], window: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(point.shape[1:])
    full = tuple(stride) if not isinstance(stride, int) else tuple(
        w if w == size else stride for w, size in zip(window, sizes, strict=True)
    )  # fmt: skip
    if len(full) != len(sizes) or any(not 1 <= s <= w for s, w in zip(full, window, strict=True)):
        raise InvalidInput(
            f"stride: {stride!r} leaves places out with a window of {window}\n"
            "  do: give 1 to the window's size, one number or one for each dimension after the batch"
        )
    return full


def shapley(
    function: Differentiable,
    samples: int = 25,
    estimator: str = "sampling",
    features: int | Tensor | None = None,
    fill: Fill = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Found, Found]:
    """Shapley values (Shapley 1953): by sampled orders (Castro et al. 2009) or by kernel SHAP (Lundberg and Lee 2017).

    Returns the values, whose sum is f(x) − f(all features replaced), and their standard error over five rounds.

    Args:
        samples: orders that are drawn ("sampling"), or subsets ("kernel").
        estimator: "sampling" or "kernel".
        features: how values are grouped into features: the number of parts a side of an image, series or volume; or
            a whole-number tensor of a sample's shape with each value's feature. By default 7 parts a side, each value
            of a table, each token. A feature's value is shared equally by what belongs to it.
        fill: what stands for a missing feature.
        seed: of the draws; every sample gets the same ones, so that its values do not depend on what else is in the batch.
    """
    _positive("samples", samples)
    if estimator not in ("sampling", "kernel"):
        raise InvalidInput(f"estimator: {estimator!r} is unknown\n  do: 'sampling' or 'kernel'")
    captum = _captum()
    sampler = captum.ShapleyValueSampling if estimator == "sampling" else captum.KernelShap

    kernel = estimator == "kernel"
    rough = torch.float32 if kernel else function.points[0].dtype  # captum fits its linear model in float32

    def scores(*tensors: Tensor) -> Tensor:
        given = [a.to(b.dtype) for a, b in zip(tensors, (*function.points, *function.extra()), strict=True)]
        return function.scores(*given).to(rough)

    def kept(tensors: Found) -> Found:
        return tuple(tensor.to(rough) if tensor.is_floating_point() else tensor for tensor in tensors)

    masks = _groups(function, features)
    counts = [_sizes(mask) for mask in masks]
    rounds = min(5, samples)
    fill_in = filled(function, fill, "fill")
    every, several = function.extra(), len(function.score)
    groups = [slice(i, i + 1) for i in range(several)] if kernel else [slice(0, several)]
    draws: list[Found] = []
    with torch.no_grad(), torch.random.fork_rng(cuda_devices()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # captum's advice to give one sample at a time
        for number in range(rounds):
            parts = []
            for group in (
                groups
            ):  # of "kernel" a sample: captum draws subsets for each, and each is to have the same ones
                torch.manual_seed(rounds * seed + number)
                parts.append(
                    sampler(scores).attribute(
                        kept(tuple(point[group] for point in function.points)),
                        baselines=kept(tuple(part[group] for part in fill_in)),
                        additional_forward_args=kept(tuple(part[group] for part in every)),
                        feature_mask=masks,
                        n_samples=samples // rounds + (number < samples % rounds),
                        perturbations_per_eval=max(1, ROWS // (1 if kernel else several)),
                        show_progress=progress,
                    )
                )
            found = [torch.cat(column) for column in zip(*parts, strict=True)]
            draws.append(tuple(part / count for part, count in zip(found, counts, strict=True)))
    mean, error = _mean_and_error(draws)
    return tuple(m.to(p.dtype) for m, p in zip(mean, function.points, strict=True)), error


def _sizes(mask: Tensor) -> Tensor:
    """For each value, how many values its feature has."""
    return torch.bincount(mask.flatten())[mask].clamp(min=1)


def _groups(function: Differentiable, features: int | Tensor | None) -> Found:
    """The feature of each value of each source, numbered through, (1, …) each."""
    masks: list[Tensor] = []
    first = 0
    for point, name in zip(function.points, function.sources, strict=True):
        sizes = tuple(point.shape[1:])
        if isinstance(features, Tensor):
            if tuple(features.shape) != sizes or features.is_floating_point():
                raise InvalidInput(
                    f"features: a {features.dtype} tensor of shape {tuple(features.shape)} for a sample of shape {sizes}\n"
                    "  do: give a whole number for each value of a sample"
                )
            mask = torch.unique(features, return_inverse=True)[1].to(point.device)
        elif function.graph[name].kind == "call":
            mask = (
                torch.arange(math.prod(sizes[:-1]), device=point.device).reshape(*sizes[:-1], 1).expand(sizes)
            )
        elif len(sizes) == 1:
            mask = torch.arange(sizes[0], device=point.device)
        else:
            mask = _grid(sizes, 7 if features is None else int(features), point.device)
        masks.append(mask[None] + first)
        first += int(mask.max()) + 1
    return tuple(masks)


def _grid(sizes: tuple[int, ...], parts: int, device: torch.device) -> Tensor:
    """A sample (C, …) cut into equal parts along every side; all channels belong together."""
    _positive("features", parts)
    result = torch.zeros(sizes[1:], dtype=torch.long, device=device)
    for dimension, size in enumerate(sizes[1:]):
        cut = torch.arange(size, device=device) * min(parts, size) // size
        result = result * min(parts, size) + cut.reshape(
            [-1 if d == dimension else 1 for d in range(len(sizes) - 1)]
        )
    return result.expand(sizes)


def random(function: Differentiable, seed: int = 0) -> Found:
    """Normal noise, the same for every sample: the baseline that every method has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(point.shape[1:], generator=generator, dtype=torch.float64)
        .to(point)
        .expand_as(point)
        .clone()
        for point in function.points
    )
