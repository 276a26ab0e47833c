"""Complex numbers: spectra, filters and rotations are explained as what they are in real numbers, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.errors import InvalidInput, UnsupportedOperation

SIZE = 16
BINS = SIZE // 2 + 1


class Net(nn.Module):
    """A linear layer, a function of its output with a complex parameter, and a linear layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.function = function
        self.first = nn.Linear(SIZE, SIZE)
        self.weight = nn.Parameter(torch.randn(BINS, dtype=torch.complex128))
        self.last = nn.Parameter(torch.randn(2 * BINS, 3))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.function(self.first(x), self.weight)
        return values @ self.last[: values.shape[-1]]


def fourier(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of torch.fft.rfft, by matrices."""
    turns = 2 * math.pi / SIZE * torch.outer(torch.arange(SIZE), torch.arange(BINS)).to(x.dtype)
    return x @ torch.cos(turns), x @ -torch.sin(turns)


def pairs(x: Tensor) -> Tensor:
    return torch.stack(fourier(x), -1)


def times(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    real, imaginary = fourier(x)
    return real * w.real - imaginary * w.imag, real * w.imag + imaginary * w.real


def squares(x: Tensor, w: Tensor) -> Tensor:
    real, imaginary = fourier(x)
    return real * real + imaginary * imaginary


REAL_TWINS = {
    "magnitude": (lambda x, w: torch.fft.rfft(x).abs(), lambda x, w: torch.linalg.vector_norm(pairs(x), dim=-1)),
    "power": (lambda x, w: torch.fft.rfft(x).abs().square(), lambda x, w: torch.linalg.vector_norm(pairs(x), dim=-1).square()),
    "power as a product": (lambda x, w: (lambda z: (z * z.conj()).real)(torch.fft.rfft(x)), squares),
    "a bias": (lambda x, w: (torch.fft.rfft(x) + w).imag, lambda x, w: fourier(x)[1] + w.imag),
    "a difference": (lambda x, w: (1.5 - torch.fft.rfft(x)).real, lambda x, w: 1.5 - fourier(x)[0]),
    "side by side": (
        lambda x, w: torch.cat([torch.fft.rfft(x), torch.fft.rfft(x.flip(-1))], -1).real,
        lambda x, w: torch.cat([fourier(x)[0], fourier(x.flip(-1))[0]], -1),
    ),
    "phases": (
        lambda x, w: torch.polar(x.abs(), x).imag,
        lambda x, w: x.abs() * torch.sin(x),
    ),
    "two filters": (
        lambda x, w: (torch.fft.rfft(x) * w - torch.fft.rfft(x).conj()).real,
        lambda x, w: times(x, w)[0] - fourier(x)[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_TWINS)
def test_complex_numbers_are_explained_as_their_real_and_imaginary_parts(name: str) -> None:
    function, twin = REAL_TWINS[name]
    x = torch.randn(3, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, expected = (relprop.explain(Net(f), x, target=1, rules="epsilon") for f in (function, twin))
    assert torch.allclose(found.score, expected.score, rtol=1e-10)
    assert torch.allclose(
        found.relevance, expected.relevance, rtol=1e-3, atol=1e-4 * float(expected.relevance.abs().max())
    )


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x, w: torch.fft.rfft(x).log().abs(), "aten.log.default"),
        (lambda x, w: torch.sgn(torch.fft.rfft(x)).real, "aten.sgn.default"),
        (lambda x, w: (x + 0j).sqrt().abs(), "aten.sqrt.default"),
        (lambda x, w: torch.einsum("bi,bi,bi->bi", *[torch.fft.rfft(x)] * 3).real, "aten.einsum.default"),
        (lambda x, w: (torch.fft.fft(x)[:, None] + x[:, :, None]).abs().flatten(1)[:, :BINS], "aten.add.Tensor"),
    ],
)  # fmt: skip
def test_other_functions_of_complex_numbers_are_refused_by_name(
    function: Callable[..., Tensor], operation: str
) -> None:
    with pytest.raises(UnsupportedOperation) as caught:
        relprop.explain(Net(function), torch.randn(2, SIZE, dtype=torch.float64))
    first = str(caught.value).splitlines()[0]
    assert first == f"{operation}: no relevance function for complex numbers"
    assert "view_as_real" in str(caught.value).splitlines()[-1]


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(2 * x)


def test_complex_outputs_and_inputs_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="for complex numbers"):
        relprop.explain(Spectrum().eval(), torch.ones(2, SIZE))
    with pytest.raises(InvalidInput, match=r"inputs: of type torch\.complex64"):
        relprop.explain(Spectrum().eval(), torch.ones(2, SIZE, dtype=torch.complex64))


class Listener(nn.Module):
    """A classifier of recordings that makes its own spectrogram: log of mel-like bands, convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("bands", torch.rand(33, 12).square())
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip
        self.eval()

    def forward(self, sound: Tensor) -> Tensor:
        spectrum = torch.stft(sound, 64, 32, window=self.window, return_complex=True).abs().square()
        bands = torch.log(1 + spectrum.transpose(1, 2) @ self.bands)
        scores: Tensor = self.body(bands[:, None])
        return scores


@pytest.mark.parametrize("rules", ["auto", "epsilon", "epsilon_plus", relprop.rules.Gamma(0.25)])
def test_a_model_that_makes_its_own_spectrogram_is_explained_down_to_the_recording(rules: Any) -> None:
    time = torch.arange(2048)
    sound = torch.sin(0.7 * time) * ((time >= 768) & (time < 1280))  # a tone in the middle
    both = torch.stack([sound, sound.roll(512)])
    found = relprop.explain(Listener(), both, rules=rules, target=0)
    share = found.relevance.abs()
    assert float(share[0, 768:1280].sum() / share[0].sum()) > 0.99
    assert float(share[1, 1280:1792].sum() / share[1].sum()) > 0.99
    single = relprop.explain(Listener(), both[1:], rules=rules, target=0)
    assert torch.allclose(found.relevance[1:], single.relevance, atol=1e-4 * float(share.max()))


def test_turn_by_an_angle_is_a_cosine_and_a_sine() -> None:
    """exp(i x): the factor exp(0), which is always 1, takes no half of the relevance."""
    x = torch.randn(3, SIZE, dtype=torch.float64)
    turned = relprop.explain(Net(lambda x, w: torch.exp(2j * x).imag), x, 1)
    plain = relprop.explain(Net(lambda x, w: torch.sin(2 * x)), x, 1)
    torch.testing.assert_close(turned.relevance, plain.relevance, rtol=1e-3, atol=1e-6)
