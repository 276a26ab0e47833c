"""A hundred random small networks of registered operations: whatever they are put together from, the promises hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from zoo import _Kinks

SAMPLES, OUTPUTS, KINK = 3, 3, 1e-4
RULES = ("auto", "epsilon", "epsilon_plus", "deep_taylor")


class Call(nn.Module):
    """A function of tensors as a module, with the modules that it uses."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*self.parts, *values)


Shape = tuple[int, ...]
Make = Callable[[Shape, int], nn.Module]
"""From the shape of one sample and a number that chooses a variant to a module of one input."""


def _even(size: int) -> bool:
    return size % 2 == 0


def _squeeze(down: nn.Module, up: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(up(torch.relu(down(x.mean((2, 3), keepdim=True)))))


def _attend(query: nn.Module, key: nn.Module, value: nn.Module, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query(x), key(x), value(x))


def _scored(score: nn.Module, x: Tensor) -> Tensor:
    return (torch.softmax(score(x), 1) * x).sum(1)


def _swapped(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def _gated(one: nn.Module, two: nn.Module, x: Tensor) -> Tensor:
    return F.silu(one(x)) * two(x)


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu, F.gelu, F.silu, torch.tanh, F.leaky_relu, F.hardswish, F.elu, F.softplus, torch.sigmoid,
    lambda x: x.clamp(-1.5, 1.5), lambda x: torch.exp(-x.abs()), lambda x: x.square(),
]  # fmt: skip

ANY: dict[str, Make] = {
    "activation": lambda s, n: Call(ACTIVATIONS[n % len(ACTIVATIONS)]),
    "scale": lambda s, n: Call(lambda x: x * 0.7 - 0.2),
    "flip": lambda s, n: Call(lambda x: x.flip(1)),
    "roll": lambda s, n: Call(lambda x: x.roll(1, -1)),
    "residual": lambda s, n: Call(lambda x: x + torch.tanh(x)),
    "divide": lambda s, n: Call(lambda x: x / (1 + x.abs())),
    "mask": lambda s, n: Call(lambda x: torch.where(x > 0, x, 0.1 * x)),
}
IMAGE: dict[str, Make] = {
    "conv": lambda s, n: nn.Conv2d(s[0], 4, 3, stride=1 + n % 2, padding=1, bias=n % 3 > 0),
    "grouped": lambda s, n: nn.Conv2d(s[0], s[0], 3, padding=2, dilation=2, groups=s[0]),
    "pointwise": lambda s, n: nn.Conv2d(s[0], 4, 1),
    "transposed": lambda s, n: nn.ConvTranspose2d(s[0], 4, 2, stride=2),
    "batch_norm": lambda s, n: nn.BatchNorm2d(s[0]),
    "group_norm": lambda s, n: nn.GroupNorm(2 if _even(s[0]) else 1, s[0]),
    "instance_norm": lambda s, n: nn.InstanceNorm2d(s[0], affine=True),
    "max_pool": lambda s, n: nn.MaxPool2d(2, 1 + n % 2, padding=n % 2),
    "average_pool": lambda s, n: nn.AvgPool2d(2, 1),
    "adaptive_pool": lambda s, n: nn.AdaptiveAvgPool2d(2),
    "upsample": lambda s, n: nn.Upsample(scale_factor=2, mode=("nearest", "bilinear")[n % 2]),
    "pad": lambda s, n: Call(lambda x: F.pad(x, (1, 0, 1, 1), mode=("constant", "reflect", "replicate")[n % 3])),
    "squeeze": lambda s, n: Call(_squeeze, nn.Conv2d(s[0], 2, 1), nn.Conv2d(2, s[0], 1)),
    "dense": lambda s, n: Call(lambda conv, x: torch.cat([x, torch.relu(conv(x))], 1), nn.Conv2d(s[0], 2, 1)),
    "tokens": lambda s, n: Call(lambda x: x.flatten(2).transpose(1, 2)),
    "global": lambda s, n: Call(lambda x: x.mean((2, 3)) if n % 2 else x.amax((2, 3))),
    "flatten": lambda s, n: nn.Flatten(),
}  # fmt: skip
SEQUENCE: dict[str, Make] = {
    "linear": lambda s, n: nn.Linear(s[1], 4, bias=n % 3 > 0),
    "layer_norm": lambda s, n: nn.LayerNorm(s[1]),
    "rms_norm": lambda s, n: nn.RMSNorm(s[1], eps=1e-4),
    "attention": lambda s, n: Call(_attend, *(nn.Linear(s[1], 4) for _ in range(3))),
    "recurrent": lambda s, n: Call(lambda net, x: net(x)[0], (nn.LSTM, nn.GRU, nn.RNN)[n % 3](s[1], 3, batch_first=True)),
    "conv1d": lambda s, n: Call(lambda conv, x: conv(x.mT).mT, nn.Conv1d(s[1], 4, 2)),
    "mixed": lambda s, n: Call(lambda net, x: net(x.transpose(1, 2)).transpose(1, 2), nn.Linear(s[0], 3)),
    "gated": lambda s, n: Call(_gated, nn.Linear(s[1], 4), nn.Linear(s[1], 4)),
    "product": lambda s, n: Call(lambda one, x: torch.einsum("btf,bsf->bts", x, one(x)), nn.Linear(s[1], s[1])),
    "scored": lambda s, n: Call(_scored, nn.Linear(s[1], 1)),
    "first": lambda s, n: Call(lambda x: x[:, 0] if n % 2 else x.unbind(1)[-1]),
    "mean": lambda s, n: Call(lambda x: x.mean(1)),
    "sum": lambda s, n: Call(lambda x: x.cumsum(1) * 0.5),
    "flatten": lambda s, n: nn.Flatten(),
}  # fmt: skip
VECTOR: dict[str, Make] = {
    "linear": lambda s, n: nn.Linear(s[0], 4 + n % 3, bias=n % 4 > 0),
    "matmul": lambda s, n: Call(lambda net, x: x @ net.weight, nn.Linear(4, s[0])),
    "batch_norm": lambda s, n: nn.BatchNorm1d(s[0]),
    "layer_norm": lambda s, n: nn.LayerNorm(s[0]),
    "gated": lambda s, n: Call(_gated, nn.Linear(s[0], 4), nn.Linear(s[0], 4)),
    "softmax": lambda s, n: Call(lambda x: torch.softmax(x, -1) * 3),
    "maximum": lambda s, n: Call(lambda one, x: torch.maximum(one(x), x), nn.Linear(s[0], s[0])),
    "stacked": lambda s, n: Call(lambda one, x: torch.stack([x, one(x)], 1), nn.Linear(s[0], s[0])),
    "norm": lambda s, n: Call(lambda x: x / torch.linalg.vector_norm(x, 2, -1, True).clamp_min(0.1)),
}  # fmt: skip
GRAMMAR: dict[int, dict[str, Make]] = {3: ANY | IMAGE, 2: ANY | SEQUENCE, 1: ANY | VECTOR}
INPUTS: list[Shape] = [(2, 5, 5), (4, 3), (6,)]


@dataclass(frozen=True)
class Drawn:
    """A program as data: an input's shape, words that choose operations, and how their results meet."""

    shape: Shape
    words: tuple[tuple[int, int, int], ...]
    seed: int


class Random(nn.Module):
    """The network that a program draws: each operation reads the last value, and may meet an earlier one."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.steps, self.meets, self.names = nn.ModuleList(), [], []
        values = [torch.randn(SAMPLES, *drawn.shape)]
        for word, variant, meeting in drawn.words:
            x = values[-1]
            kinds = GRAMMAR[x.dim() - 1]
            name = sorted(kinds)[word % len(kinds)]
            step = kinds[name](tuple(x.shape[1:]), variant).eval()
            try:
                y = step(x)
            except (RuntimeError, ValueError):
                continue  # a window larger than what is left
            if y.numel() == 0:
                continue
            earlier = [i for i, value in enumerate(values) if value.shape == y.shape]
            meets = (earlier[meeting % len(earlier)], meeting % 3) if earlier and meeting % 4 else None
            self.steps.append(step)
            self.meets.append(meets)
            self.names.append(name)
            values.append(self.join(y, meets, values))
        self.head = nn.Linear(values[-1].flatten(1).shape[1], OUTPUTS)
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.running_mean.normal_(0, 0.3)
                    part.running_var.uniform_(0.5, 2.0)
                for parameter in part.parameters(recurse=False):
                    if parameter.dim() == 1:
                        parameter.add_(0.2 * torch.randn_like(parameter))
        self.eval()

    @staticmethod
    def join(y: Tensor, meets: tuple[int, int] | None, values: list[Tensor]) -> Tensor:
        if meets is None:
            return y
        other = values[meets[0]]
        return y + other if meets[1] == 0 else y * torch.sigmoid(other) if meets[1] == 1 else y - 0.5 * other

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, meets in zip(self.steps, self.meets, strict=True):
            values.append(self.join(step(values[-1]), meets, values))
        return self.head(values[-1].flatten(1))


programs = st.builds(
    Drawn,
    st.sampled_from(INPUTS),
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 11), st.integers(0, 11)), min_size=2, max_size=6).map(tuple),
    st.integers(0, 2**16),
)  # fmt: skip


def made(drawn: Drawn) -> tuple[Random, Tensor]:
    torch.manual_seed(drawn.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return Random(drawn), torch.randn(SAMPLES, *drawn.shape)
    finally:
        torch.set_default_dtype(before)


@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(programs, st.sampled_from(RULES), st.integers(0, 6))
def test_the_promises_hold_for_random_networks(drawn: Drawn, rules: str, precision: int) -> None:
    model, x = made(drawn)
    explainer = relprop.Explainer(model, rules)
    weights = torch.randn(SAMPLES, OUTPUTS, dtype=torch.float64)
    found, again = explainer(x, weights), explainer(x, weights)
    joint, scaled = explainer.explain_targets(x, [weights, -2.5 * weights])
    audit: Any = found.audit
    size = torch.stack([audit.score.abs(), audit.magnitude, torch.ones(SAMPLES)]).amax(0)
    context = f"{model.names} {rules}"
    total = audit.relevance + sum(audit.absorbed.values())
    assert bool(((audit.score - total).abs() <= 1e-10 * size).all()), context
    torch.testing.assert_close(audit.score, (weights * model(x)).sum(1).detach())
    assert torch.equal(found.relevance, again.relevance), context
    loose = 1e-9 * float(size.max())
    torch.testing.assert_close(joint.relevance, found.relevance, rtol=1e-7, atol=loose, msg=context)
    torch.testing.assert_close(scaled.relevance, -2.5 * found.relevance, rtol=1e-7, atol=loose, msg=context)
    single = explainer(x[1:2], weights[1:2])
    torch.testing.assert_close(single.relevance, found.relevance[1:2], rtol=1e-6, atol=loose, msg=context)
    if precision == 0:
        _in_single_precision(model, x, weights, rules, found, context)


def _in_single_precision(
    model: Random, x: Tensor, weights: Tensor, rules: str, found: relprop.Explanation, context: str
) -> None:
    """Float32 gives what float64 does, as far as denominators near zero allow, away from kinks."""
    with torch.no_grad(), _Kinks() as watch:
        model(x)
    if watch.distance < KINK:
        return
    coarse = relprop.explain(model.float(), x.float(), weights.float(), rules)
    assert coarse.audit is not None and coarse.audit.closes, context
    held: Any = found.audit
    blown = float((held.magnitude / held.score.abs().clamp_min(1e-3)).max().clamp_min(1))
    allowed = 1e-4 * float(held.magnitude.max().clamp_min(1e-3)) * blown
    assert float((coarse.relevance.double() - found.relevance).abs().max()) <= allowed, context


def test_the_random_networks_differ_and_hold_every_word_of_the_grammar() -> None:
    seen: set[str] = set()
    for shape in INPUTS:
        for word in range(40):
            for variant in range(2):
                model, _ = made(Drawn(shape, ((word, variant, 0),), 0))
                seen.update(f"{len(shape)}{name}" for name in model.names)
    assert seen == {f"{rank}{name}" for rank, kinds in GRAMMAR.items() for name in kinds}
