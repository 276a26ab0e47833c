"""What stands for a destroyed region: constants, draws, blurs, neighbours. `REPLACEMENTS` lists them by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Setting:
    """What a replacement may look at: the inputs of all samples, and what is drawn from.

    Attributes:
        inputs: (B, …).
        samples: the number of each sample in the whole data set.
        low, high: the range of valid values, which broadcast to `inputs`.
        data: inputs of the data set that donors are taken from, (M, …).
        seed: of all draws.
        stated: the caller stated the range; else it is that of the inputs.
        noise: the deviation of the noise of "noisy_linear".
    """

    inputs: Tensor
    samples: tuple[int, ...]
    low: Tensor
    high: Tensor
    data: Tensor
    seed: int = 0
    stated: bool = False
    noise: float = 0.01

    def generators(self, draw: int) -> list[Any]:
        """A generator of random numbers for each sample, by seed, number and draw: batches do not matter."""
        import numpy as np

        return [np.random.default_rng([self.seed, int(sample), draw]) for sample in self.samples]


Field = Callable[[Setting, int], Tensor]
"""From a setting and the number of a draw to what every value is replaced by, of the inputs' shape."""


def uniform(setting: Setting, draw: int) -> Tensor:
    """Uniform noise over the valid range, for every value of every sample."""
    import numpy as np

    shape = tuple(setting.inputs.shape[1:])
    drawn = torch.from_numpy(np.stack([g.random(shape, dtype=np.float64) for g in setting.generators(draw)]))
    return setting.low + (setting.high - setting.low) * drawn.to(setting.inputs)


def mean(setting: Setting, draw: int) -> Tensor:
    """Each sample's own mean, of each channel where there are places."""
    x = setting.inputs
    dims = tuple(range(2, x.dim())) if x.dim() > 2 else (1,)
    return x.mean(dims, keepdim=True).expand_as(x)


def zero(setting: Setting, draw: int) -> Tensor:
    """0: after normalisation the mean of the data set."""
    return torch.zeros_like(setting.inputs)


def black(setting: Setting, draw: int) -> Tensor:
    """Each sample's smallest value."""
    x = setting.inputs
    return x.flatten(1).amin(1).reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)


def invert(setting: Setting, draw: int) -> Tensor:
    """The value mirrored in its range: −x on [−1, 1] (Bach et al. 2015)."""
    return setting.low + setting.high - setting.inputs


def dataset(setting: Setting, draw: int) -> Tensor:
    """The same places of another sample of the data, drawn for each sample."""
    if len(setting.data) < 2:
        raise InvalidInput(
            "replacement: 'dataset' needs other samples\n  do: give data=, inputs to draw from"
        )
    donors = [int(g.integers(len(setting.data))) for g in setting.generators(draw)]
    return setting.data[torch.tensor(donors)].to(setting.inputs)


def blurred(images: Tensor, sigma: float = 5.0, side: int = 11) -> Tensor:
    """Images (B, C, H, W) after a Gaussian blur (Petsiuk et al. 2018: side 11, deviation 5), edges repeated."""
    if images.dim() != 4:
        raise InvalidInput(
            f"replacement: a blur of inputs of shape {tuple(images.shape)}\n  do: it is for images (B, C, H, W)"
        )
    along = torch.arange(side, dtype=images.dtype, device=images.device) - (side - 1) / 2
    kernel = torch.exp(-(along**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = images.reshape(-1, 1, *images.shape[2:])
    padded = F.pad(flat, (side // 2,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, -1, 1)), kernel.reshape(1, 1, 1, -1)).reshape(
        images.shape
    )


def blur(setting: Setting, draw: int) -> Tensor:
    """The blurred image."""
    return blurred(setting.inputs)


@dataclass(frozen=True, slots=True)
class Replacement:
    """One row: what it is, its field (None: it depends on which places are missing), and whether it is drawn."""

    about: str
    field: Field | None
    random: bool = False


REPLACEMENTS: dict[str, Replacement] = {
    "uniform": Replacement("uniform noise over the valid range (Samek et al. 2017)", uniform, random=True),
    "zero": Replacement("0", zero),
    "black": Replacement("the sample's smallest value", black),
    "mean": Replacement("the sample's mean, by channel", mean),
    "blur": Replacement("the blurred image (Petsiuk et al. 2018)", blur),
    "invert": Replacement("the value mirrored in its range (Bach et al. 2015)", invert),
    "dataset": Replacement("the same places of another sample", dataset, random=True),
    "noisy_linear": Replacement(
        "what the neighbours let expect, plus noise (ROAD, Rong et al. 2022)", None, random=True
    ),
}
"""The replacements by name; a new one is a function and a row."""


def replacement_of(given: Any, setting: Setting) -> Replacement:
    """The replacement that a name, a number, a tensor or a callable means.

    A number or a tensor (which broadcasts to a sample) is that constant; for token ids a number is the id. A callable takes
    the inputs (B, …) and returns what they are replaced by. Raises `InvalidInput` for what does not fit the inputs.
    """
    x = setting.inputs
    if isinstance(given, str):
        if given not in REPLACEMENTS:
            raise InvalidInput(
                f"replacement: {given!r} is unknown\n  do: a number, or one of {', '.join(REPLACEMENTS)}"
            )
        if not x.is_floating_point():
            raise InvalidInput(
                f"replacement: {given!r} of token ids\n  do: give the id that stands for nothing: replacement=tokenizer.mask_token_id"
            )
        if given == "noisy_linear" and x.dim() != 4:
            raise InvalidInput(
                f"replacement: 'noisy_linear' of inputs of shape {tuple(x.shape)}\n  do: it is for images (B, C, H, W)"
            )
        return REPLACEMENTS[given]
    if callable(given) and not isinstance(given, Tensor):
        made = given(x)
        if not isinstance(made, Tensor) or made.shape != x.shape:
            raise InvalidInput(
                f"replacement: the callable did not return {tuple(x.shape)}\n  do: return what the inputs are replaced by"
            )
        return Replacement("the caller's", lambda setting, draw: made.to(x))
    try:
        constant = torch.as_tensor(given, device=x.device)
        if not x.is_floating_point() and constant.is_floating_point():
            raise InvalidInput(f"replacement: {given!r} of token ids\n  do: give a whole number, a token id")
        made = constant.to(x.dtype).expand(x.shape)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"replacement: {given!r} does not fit inputs of shape {tuple(x.shape)}\n  do: give a number, a name, or one value a channel: (C, 1, 1)"
        ) from error
    if x.is_floating_point():
        if bool(made.isnan().any()):
            raise InvalidInput(
                f"replacement: {given!r} is not a number\n  do: give a value inside the inputs' range"
            )
        low, high = float(setting.low.min()), float(setting.high.max())
        outside = (made < setting.low) | (made > setting.high)
        if (
            not setting.stated
        ):  # the range was guessed from the inputs: refuse only what is far from them, and not 0
            wide = high - low
            outside = (made < min(low, 0.0) - wide) | (made > max(high, 0.0) + wide)
        if bool(outside.any()):
            raise InvalidInput(
                f"replacement: {given!r} is outside the inputs' range, {low:.4g} to {high:.4g}\n"
                "  do: give a value inside it, or the range of valid inputs as bounds=(low, high)"
            )
    return Replacement("a constant", lambda setting, draw: made)


def bounds_of(inputs: Tensor, bounds: Any) -> tuple[Tensor, Tensor]:
    """The lowest and the highest valid value: those given, or each channel's among the inputs."""
    if bounds is None:
        if not inputs.is_floating_point() or inputs.dim() < 2:
            return torch.tensor(-math.inf), torch.tensor(math.inf)
        dims = [0, *range(2, inputs.dim())] if inputs.dim() >= 4 else list(range(inputs.dim()))
        return inputs.amin(dims, keepdim=True), inputs.amax(dims, keepdim=True)
    try:
        low, high = (torch.as_tensor(side, dtype=inputs.dtype, device=inputs.device) for side in bounds)
        for side in (low, high):
            side.expand(inputs.shape)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(
            "bounds: not a lowest and a highest value\n  do: give (low, high), numbers or one value a channel: (C, 1, 1)"
        ) from error
    if bool((low > high).any()) or bool((inputs < low).any()) or bool((inputs > high).any()):
        raise InvalidInput(
            f"bounds: inputs from {float(inputs.min()):.4g} to {float(inputs.max()):.4g} break them\n"
            "  do: give the range of valid inputs after normalisation"
        )
    return low, high


def expanded(samples: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The numbers of the samples: those given, or 0, 1, ….."""
    numbers = tuple(range(count)) if samples is None else tuple(int(one) for one in samples)
    if len(numbers) != count:
        raise InvalidInput(f"samples: {len(numbers)} numbers for {count} samples\n  do: give one a sample")
    return numbers
