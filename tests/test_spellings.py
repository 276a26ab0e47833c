"""One function, written with other operations of torch: the relevance is the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop

Form = Callable[[Any, Tensor], Tensor]
RULES = (
    "epsilon",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1",
    "attn_lrp",
    "cp_lrp",
    "auto",
    "innvestigate/lrp_epsilon",
)


class Spelled(nn.Module):
    """A function of layers, weights and an input."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.linear, self.plain, self.head = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 4)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.shift, self.matrix = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 6))
        self.heads, self.shifts = nn.Parameter(torch.randn(2, 6, 4)), nn.Parameter(torch.randn(2, 1, 4))
        for value in self.norm.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 2)
        self.norm.bias.data.normal_()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def rows(h: Tensor, m: Spelled) -> Tensor:
    return m.head(torch.relu(h).mean(1))


def maps(h: Tensor, m: Spelled) -> Tensor:
    return m.head(torch.relu(h).mean((2, 3)))


def _normalised(m: Spelled, x: Tensor) -> tuple[Tensor, ...]:
    """A convolution, and the statistics and weights of its batch normalisation, one number for each channel."""
    n = m.norm
    spread = torch.sqrt(n.running_var + n.eps)
    values = (n.running_mean, spread, n.weight, n.bias)
    return m.conv(x), *(value[:, None, None] for value in values)


def _frozen(m: Spelled, x: Tensor) -> Tensor:
    y, mean, spread, weight, bias = _normalised(m, x)
    scale = weight / spread
    return maps(y * scale + (bias - mean * scale), m)


def _by_formula(m: Spelled, x: Tensor) -> Tensor:
    y, mean, spread, weight, bias = _normalised(m, x)
    return maps((y - mean) / spread * weight + bias, m)


def _resized(y: Tensor, shift: Tensor) -> Tensor:
    """The number of samples is read off what the bias is added to."""
    return (y + shift).view(y.shape[0], 5, 8) + torch.zeros(y.shape[0], 1, 1, dtype=y.dtype)


def _shifted(scores: Tensor) -> Tensor:
    return scores - scores.amax(-1, keepdim=True)


def _attended(m: Spelled, x: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
    return rows(softmax(m.plain(x) @ m.linear(x).mT) @ m.linear(x), m)


def _heads(h: Tensor, m: Spelled) -> Tensor:
    return m.head(torch.relu(h).mean(2).flatten(1))


SEQUENCE, IMAGE = (2, 5, 6), (2, 3, 5, 5)
SPELLINGS: dict[str, tuple[tuple[int, ...], list[Form]]] = {
    "bias of a linear layer": (
        SEQUENCE,
        [
            lambda m, x: rows(F.linear(x, m.matrix, m.shift), m),
            lambda m, x: rows(F.linear(x, m.matrix) + m.shift, m),
            lambda m, x: rows(m.shift + x @ m.matrix.T, m),
            lambda m, x: rows(x @ m.matrix.T - (-m.shift), m),
            lambda m, x: rows(F.linear(x, m.matrix) + m.shift[None, None], m),
            lambda m, x: rows(torch.einsum("bti,oi->bto", x, m.matrix) + m.shift, m),
            lambda m, x: rows(torch.einsum("...i,oi->...o", x, m.matrix) + m.shift, m),
            lambda m, x: rows((m.matrix @ x.mT + m.shift[:, None]).mT, m),
            lambda m, x: rows(_resized(F.linear(x, m.matrix), m.shift), m),
            lambda m, x: rows(F.linear(x, m.matrix, m.shift / 2) + m.shift / 2, m),
        ],
    ),
    "bias of heads": (
        SEQUENCE,
        [
            lambda m, x: _heads(
                F.linear(x, m.heads.mT.flatten(0, 1), m.shifts.flatten())
                .unflatten(2, (2, 4))
                .transpose(1, 2),
                m,
            ),
            lambda m, x: _heads(x[:, None] @ m.heads + m.shifts, m),
            lambda m, x: _heads(torch.einsum("bti,hio->bhto", x, m.heads) + m.shifts, m),
        ],
    ),
    "bias of a convolution": (
        IMAGE,
        [
            lambda m, x: maps(F.conv2d(x, m.conv.weight, m.shift), m),
            lambda m, x: maps(F.conv2d(x, m.conv.weight) + m.shift[:, None, None], m),
            lambda m, x: maps(m.shift.view(1, 8, 1, 1) + m.conv(x), m),
        ],
    ),
    "padding": (
        IMAGE,
        [
            lambda m, x: maps(F.conv2d(x, m.conv.weight, padding=1), m),
            lambda m, x: maps(m.conv(F.pad(x, (1, 1, 1, 1))), m),
            lambda m, x: maps(m.conv(F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1))), m),
            lambda m, x: maps(m.conv(F.pad(F.pad(F.pad(x, (1, 0)), (0, 1)), (0, 0, 1, 1))), m),
        ],
    ),
    "softmax": (
        SEQUENCE,
        [
            lambda m, x: _attended(m, x, lambda s: s.softmax(-1)),
            lambda m, x: _attended(m, x, lambda s: s.exp() / s.exp().sum(-1, keepdim=True)),
            lambda m, x: _attended(
                m, x, lambda s: _shifted(s).exp() / _shifted(s).exp().sum(-1, keepdim=True)
            ),
        ],
    ),
    "bound": (
        SEQUENCE,
        [
            lambda m, x: rows(m.linear(x).clamp(max=0.3), m),
            lambda m, x: rows(torch.minimum(m.linear(x), torch.tensor(0.3, dtype=x.dtype)), m),
            lambda m, x: rows(torch.min(torch.tensor(0.3, dtype=x.dtype), m.linear(x)), m),
            lambda m, x: rows(m.linear(x).clamp_max(torch.full((8,), 0.3, dtype=x.dtype)), m),
        ],
    ),
    "gate": (
        SEQUENCE,
        [
            lambda m, x: rows(m.linear(x) * torch.sigmoid(m.plain(x)), m),
            lambda m, x: rows(torch.einsum("bto,bto->bto", m.linear(x), torch.sigmoid(m.plain(x))), m),
            lambda m, x: rows(torch.einsum("bot,bto->bto", m.linear(x).mT, torch.sigmoid(m.plain(x))), m),
        ],
    ),
    "gate of channels": (
        IMAGE,
        [
            lambda m, x: maps(
                m.conv(x) * torch.sigmoid(m.head.weight[0] * m.conv(x).mean((2, 3)))[:, :, None, None], m
            ),
            lambda m, x: maps(
                torch.einsum(
                    "bchw,bc->bchw", m.conv(x), torch.sigmoid(m.head.weight[0] * m.conv(x).mean((2, 3)))
                ),
                m,
            ),
        ],
    ),
    "sum": (
        IMAGE,
        [
            lambda m, x: m.head(torch.relu(m.conv(x)).sum((2, 3))),
            lambda m, x: m.head(torch.einsum("bchw->bc", torch.relu(m.conv(x)))),
            lambda m, x: m.head(torch.einsum("bcwh->chb", torch.relu(m.conv(x))).sum(1).T),
        ],
    ),
    "batch normalisation": (IMAGE, [lambda m, x: maps(m.norm(m.conv(x)), m), _frozen, _by_formula]),
}


@functools.cache
def relevance(what: str, index: int, rule: str) -> Tensor:
    x = torch.randn(SPELLINGS[what][0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return relprop.explain(spelled(what, index), x, 1, rule).relevance


@functools.cache
def spelled(what: str, index: int) -> Spelled:
    return Spelled(SPELLINGS[what][1][index])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "what, index", [(what, i) for what, (_, forms) in SPELLINGS.items() for i in range(1, len(forms))]
)
def test_every_spelling_has_the_same_relevance(what: str, index: int, rule: str) -> None:
    expected, found = relevance(what, 0, rule), relevance(what, index, rule)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("kind", ["einsum", "bilinear"])
def test_a_gate_in_any_product_is_constant_under_cp_lrp(kind: str) -> None:
    class Gated(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.values, self.scores, self.product = nn.Linear(4, 3), nn.Linear(4, 3), nn.Bilinear(3, 3, 2)
            self.kind = kind
            self.double().eval()

        def forward(self, x: Tensor) -> Tensor:
            weights, values = torch.softmax(self.scores(x), -1), self.values(x)
            if self.kind == "einsum":
                return torch.einsum("bt,bt->b", weights, values)[:, None]
            return self.product(weights, values)

    found = relprop.explain(Gated(kind), torch.randn(2, 4, dtype=torch.float64), 0, "cp_lrp")
    assert "constant" not in found.audit.absorbed and "softmax_bias" not in found.audit.absorbed
