"""Max pooling under each rule, reductions and norms against slow twins that loop over windows and values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop.engine.propagate import walk
from relprop.engine.rules import Epsilon, MaxPool, Pass, Product, Taylor
from relprop.explain import Explainer, forward
from relprop.targets import main_output
from test_rules import drawn

CLOSE = 1e-10
BATCH = 3


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def engine(
    function: Callable[..., Any], x: Tensor, rules: Any = "epsilon"
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The relevance that arrived, the input's relevance, and the accounts, whose sum closes."""
    module = Applied(function).eval()
    explainer = Explainer(module, rules, example=x)
    captured, program = explainer.program((x,), {})
    passed = forward(explainer, captured, program, (x,), {})
    output = main_output(passed.output)
    relevance = drawn(tuple(output.shape), 77, False)
    way = walk(
        program,
        passed.values,
        {main_output(captured.graph.output): relevance},
        captured.store,
        x.shape[0],
        True,
    )
    absorbed: dict[str, Tensor] = {}
    for entry in way.entries:
        assert float(entry.gap.abs().max()) < CLOSE, entry
        for reason, amount in entry.absorbed.items():
            absorbed[reason] = absorbed.get(reason, 0) + amount
    return relevance, next(iter(way.inputs.values())), absorbed


def pairs(
    relevance: Tensor, windows: Callable[[tuple[int, ...]], Iterable[tuple[int, ...]]]
) -> Iterable[Any]:
    for place in itertools.product(*map(range, relevance.shape)):
        yield place, [(*place[:2], *inner) for inner in windows(place[2:])]


def slow_max(x: Tensor, relevance: Tensor, windows: Any, rule: MaxPool) -> Tensor:
    """Each output's R to the values of its window, one by one (methods sheet, 3.2)."""
    result = torch.zeros_like(x)
    for place, members in pairs(relevance, windows):
        r, values = float(relevance[place]), [float(x[m]) for m in members]
        top = max(values)
        best = [i for i, v in enumerate(values) if v == top]
        for i, member in enumerate(members):
            if rule.how == "winner":
                part = 1.0 if i == best[0] else 0.0
            elif rule.how == "split":
                part = 1 / len(best) if i in best else 0.0
            elif rule.how == "softmax":
                part = math.exp(rule.beta * values[i]) / sum(math.exp(rule.beta * v) for v in values)
            else:
                total = sum(values)
                part = values[i] / (total + math.copysign(rule.epsilon, total))
            result[member] += part * r
    return result


def fixed(size: tuple[int, ...], kernel: int, stride: int, padding: int, dilation: int) -> Any:
    def windows(place: tuple[int, ...]) -> list[tuple[int, ...]]:
        ranges = [[p * stride - padding + k * dilation for k in range(kernel)] for p in place]
        return [
            m for m in itertools.product(*ranges) if all(0 <= i < n for i, n in zip(m, size, strict=True))
        ]

    return windows


def adaptive(size: tuple[int, ...], out: int) -> Any:
    def windows(place: tuple[int, ...]) -> list[tuple[int, ...]]:
        ranges = [range(p * n // out, -(-(p + 1) * n // out)) for p, n in zip(place, size, strict=True)]
        return list(itertools.product(*ranges))

    return windows


MODES = [MaxPool(), MaxPool("split"), MaxPool("softmax", beta=0.7), MaxPool("proportional", epsilon=0.1)]
POOLS = {
    "1d": ((7,), (2, 2, 1, 1), False),
    "1d_ceil": ((6,), (3, 2, 0, 1), True),
    "2d_overlap": ((5, 4), (3, 1, 1, 1), False),
    "2d_dilation_ceil": ((6, 7), (2, 2, 1, 2), True),
    "3d": ((3, 4, 3), (2, 1, 0, 1), False),
}


@pytest.mark.parametrize("rule", MODES, ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_max_pool_equals_its_twin(name: str, rule: MaxPool) -> None:
    size, (kernel, stride, padding, dilation), ceil = POOLS[name]
    pool = getattr(nn, f"MaxPool{len(size)}d")(kernel, stride, padding, dilation, ceil_mode=ceil)
    x = drawn((BATCH, 2, *size), 1, True)  # a coarse grid: many ties
    relevance, found, _ = engine(pool, x, relprop.Composite([("max", rule)]))
    expected = slow_max(x, relevance, fixed(size, kernel, stride, padding, dilation), rule)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("rule", MODES, ids=str)
@pytest.mark.parametrize("size", [(5,), (5, 7), (3, 4, 5)])
def test_adaptive_max_pool_equals_its_twin(size: tuple[int, ...], rule: MaxPool) -> None:
    pool = getattr(nn, f"AdaptiveMaxPool{len(size)}d")(2)
    x = drawn((BATCH, 2, *size), 2, True)
    relevance, found, _ = engine(pool, x, relprop.Composite([("max", rule)]))
    torch.testing.assert_close(found, slow_max(x, relevance, adaptive(size, 2), rule), rtol=CLOSE, atol=CLOSE)


MAXIMA: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "max_dim": (lambda x: x.max(2).values, 1),
    "max_keepdim": (lambda x: x.max(-1, keepdim=True).values, 1),
    "amax": (lambda x: x.amax(2), 1),
    "amax_keepdim": (lambda x: x.amax((-1,), keepdim=True), 1),
    "min_dim": (lambda x: x.min(2).values, -1),
    "amin": (lambda x: x.amin(-1), -1),
}


@pytest.mark.parametrize("rule", MODES, ids=str)
@pytest.mark.parametrize("name", MAXIMA)
def test_extremes_over_a_dimension_equal_their_twin(name: str, rule: MaxPool) -> None:
    function, sign = MAXIMA[name]
    x = drawn((BATCH, 2, 6), 3, True)
    relevance, found, _ = engine(function, x, relprop.Composite([("max", rule)]))
    of = x if rule.how == "proportional" else sign * x
    expected = slow_max(of, relevance.reshape(BATCH, 2, 1), lambda place: [(i,) for i in range(6)], rule)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


def test_maximum_over_several_dimensions_goes_to_the_first_of_equals() -> None:
    x = torch.zeros(2, 2, 3, dtype=torch.float64)
    x[:, 1, 1] = x[:, 1, 2] = 5.0
    relevance, found, _ = engine(lambda x: x.amax((1, 2)), x)
    expected = torch.zeros_like(x)
    expected[:, 1, 1] = relevance
    assert torch.equal(found, expected)


RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda x: x.sort(1, descending=True).values,
    "topk": lambda x: x.topk(3, dim=1).values,
    "topk_smallest": lambda x: x.topk(2, dim=1, largest=False).values,
    "kthvalue": lambda x: x.kthvalue(2, dim=1).values,
    "kthvalue_keepdim": lambda x: x.kthvalue(2, dim=1, keepdim=True).values,
    "median": lambda x: x.median(1).values,
    "cummax": lambda x: x.cummax(1).values,
    "max_last": lambda x: x.max(-1).values,
}


@pytest.mark.parametrize("name", RANKS)
def test_values_chosen_by_rank_return_to_their_place(name: str) -> None:
    x = drawn((BATCH, 5, 4), 4, False)
    relevance, found, absorbed = engine(RANKS[name], x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(RANKS[name](leaf), leaf, relevance)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    assert not any(bool(a.any()) for a in absorbed.values())


# ---------------------------------------------------------------- reductions


def share(terms: Tensor, relevance: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Shares in proportion to the terms of a sum, methods sheet, 2.10."""
    total = terms.sum(dims, keepdim=True)
    return (
        terms / (total + torch.copysign(torch.full_like(total, eps), total)) * relevance.reshape(total.shape)
    )


def centred(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x - x.mean(dims, keepdim=True)


SUMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "mean": (lambda x: x.mean(1), lambda x: x / 4, (1,)),
    "mean_keepdim_negative": (lambda x: x.mean(-1, keepdim=True), lambda x: x / 5, (2,)),
    "mean_two": (lambda x: x.mean((1, -1)), lambda x: x / 20, (1, 2)),
    "sum": (lambda x: x.sum((-2, -1), keepdim=True), lambda x: x, (1, 2)),
    "norm": (lambda x: x.norm(dim=1), lambda x: x.square(), (1,)),
    "vector_norm_3": (lambda x: torch.linalg.vector_norm(x, 3, (1, 2)), lambda x: x.abs() ** 3, (1, 2)),
    "norm_1": (lambda x: torch.linalg.vector_norm(x, 1, -1, keepdim=True), lambda x: x.abs(), (2,)),
    "std": (lambda x: x.std(1), lambda x: centred(x, (1,)).square(), (1,)),
    "var_biased": (lambda x: x.var((1, 2), correction=0), lambda x: centred(x, (1, 2)).square(), (1, 2)),
    "var_keepdim": (lambda x: x.var(-1, keepdim=True), lambda x: centred(x, (2,)).square(), (2,)),
}


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("name", SUMS)
def test_sums_norms_and_deviations_share_in_proportion(name: str, eps: float) -> None:
    function, terms, dims = SUMS[name]
    x = drawn((BATCH, 4, 5), 5, False)
    relevance, found, absorbed = engine(function, x, relprop.Composite([("pool", Epsilon(eps))]))
    torch.testing.assert_close(found, share(terms(x), relevance, dims, eps), rtol=CLOSE, atol=CLOSE)
    assert ("stabilizer" in absorbed) == (eps > 0)


def test_norm_of_infinite_order_goes_to_the_largest() -> None:
    x = drawn((BATCH, 6), 6, False)
    relevance, found, _ = engine(lambda x: torch.linalg.vector_norm(x, torch.inf, 1), x)
    place = x.abs().argmax(1)
    assert torch.equal(found, torch.zeros_like(x).scatter(1, place[:, None], relevance[:, None]))


def test_variance_and_mean_of_one_operation_add_up() -> None:
    x = drawn((BATCH, 6), 7, False)
    relevance, found, _ = engine(
        lambda x: torch.stack(torch.var_mean(x, 1), 1), x, relprop.Composite([("pool", Epsilon(0.0))])
    )
    expected = share(centred(x, (1,)).square(), relevance[:, 0], (1,), 0.0) + share(
        x, relevance[:, 1], (1,), 0.0
    )
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


def test_product_of_many_factors_shares_evenly() -> None:
    x = drawn((BATCH, 4), 8, False)
    relevance, found, _ = engine(lambda x: x.prod(1), x)
    torch.testing.assert_close(found, (relevance[:, None] / 4).expand(-1, 4))
    rules = relprop.Composite([(lambda planned: "prod" in planned.operation, Product("abs", epsilon=0.0))])
    relevance, found, _ = engine(lambda x: x.prod(1), x, rules)
    torch.testing.assert_close(found, share(x.abs(), relevance, (1,), 0.0), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", [(1,), (-1,), (1, 2)])
def test_log_sum_exp_shares_by_softmax(dims: tuple[int, ...], keepdim: bool) -> None:
    x = drawn((BATCH, 3, 4), 9, False)
    relevance, found, absorbed = engine(lambda x: torch.logsumexp(x, dims, keepdim), x)
    weights = x.exp() / x.exp().sum(dims, keepdim=True)
    expected = weights * relevance.reshape(x.sum(dims, keepdim=True).shape)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    assert not any(bool(a.any()) for a in absorbed.values())


# ---------------------------------------------------------------- norms


def slow_norm(
    x: Tensor, relevance: Tensor, group: list[list[int]], scale: Tensor, shift: Tensor, eps: float, mean: bool
) -> Tensor:
    """R_i = x_i Σ_j w_j/σ (δ_ij − 1/N) R_j/y_j of one flat sample (Ali et al. 2022; methods sheet, 4.4)."""
    result = torch.zeros_like(x)
    for members in group:
        values = x[members]
        m = values.mean() if mean else torch.zeros(())
        sigma = ((values - m).square().mean() + eps).sqrt()
        for i in members:
            for j in members:
                y = scale[j] * (x[j] - m) / sigma + shift[j]
                slope = scale[j] / sigma * ((i == j) - (1 / len(members) if mean else 0.0))
                result[i] += x[i] * slope * relevance[j] / y
    return result


def norms() -> dict[str, tuple[nn.Module, list[list[int]]]]:
    channel = [list(range(4 * c, 4 * c + 4)) for c in range(4)]
    return {
        "layer_norm": (nn.LayerNorm([4, 2, 2]), [list(range(16))]),
        "layer_norm_last": (nn.LayerNorm([2]), [[2 * i, 2 * i + 1] for i in range(8)]),
        "group_norm": (nn.GroupNorm(2, 4), [channel[0] + channel[1], channel[2] + channel[3]]),
        "instance_norm": (nn.InstanceNorm2d(4, affine=True), channel),
        "rms_norm": (nn.RMSNorm([4, 2, 2], eps=1e-5), [list(range(16))]),
    }


@pytest.mark.parametrize("bias", ["absorb", "ignore"])
@pytest.mark.parametrize("name", norms())
def test_detached_norms_equal_their_twin(name: str, bias: Any) -> None:
    module, groups = norms()[name]
    module = module.double()
    for p in module.parameters():
        nn.init.normal_(p)
    x = drawn((BATCH, 4, 2, 2), 10, False)
    rules = relprop.Composite([("norm", Epsilon(0.0, bias=bias))])
    relevance, found, _ = engine(module, x, rules)
    with torch.no_grad():
        scale, shift = module.weight, getattr(module, "bias", None)
        shift = torch.zeros_like(scale) if shift is None or bias == "ignore" else shift
        if name in ("group_norm", "instance_norm"):
            scale, shift = scale[:, None, None], shift[:, None, None]
        scale, shift = scale.expand(4, 2, 2).flatten(), shift.expand(4, 2, 2).flatten()
        for i in range(BATCH):
            expected = slow_norm(
                x[i].flatten(), relevance[i].flatten(), groups, scale, shift, 1e-5, "rms" not in name
            )
            torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-9, atol=1e-9)
    relevance, found, absorbed = engine(module, x, relprop.Composite([("norm", Pass())]))
    assert torch.equal(found, relevance)
    assert not absorbed


def slow_local_response(
    x: Tensor, relevance: Tensor, size: int, alpha: float, beta: float, k: float
) -> Tensor:
    """The messages of Binder et al. 2016 of one pixel's channels, by their sum (methods sheet, 4.3)."""
    count, a = len(x), alpha / size
    result = torch.zeros_like(x)
    for c in range(count):
        near = range(max(0, c - size // 2), min(count, c + (size - 1) // 2 + 1))
        base = k + a * sum(float(x[i]) ** 2 for i in near)
        messages = {i: -2 * a * beta * x[c] * x[i] ** 2 / base ** (beta + 1) for i in near}
        messages[c] = x[c] / (k + a * x[c] ** 2) ** beta
        for i, message in messages.items():
            result[i] += message / sum(messages.values()) * relevance[c]
    return result


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("shape", [(6, 2), (6, 2, 2)])
def test_local_response_norm_equals_its_twin(shape: tuple[int, ...], size: int) -> None:
    x = drawn((BATCH, *shape), 11, False)
    options = (0.8, 0.75, 1.5)
    rules = relprop.Composite([("norm", Taylor(epsilon=0.0))])
    relevance, found, _ = engine(lambda x: F.local_response_norm(x, size, *options), x, rules)
    columns = [t.flatten(2).movedim(1, 2).reshape(-1, shape[0]) for t in (x, relevance, found)]
    for one, r, result in zip(*columns, strict=True):
        expected = slow_local_response(one, r, size, *options)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_batch_statistics_are_refused() -> None:
    module = nn.BatchNorm2d(3, track_running_stats=False).double().eval()
    with pytest.raises((relprop.UnsupportedOperation, relprop.CaptureError)):
        relprop.explain(nn.Sequential(module, nn.Flatten()).eval(), drawn((2, 3, 4, 4), 0, False))


class Meeting(nn.Module):
    """The largest of the values that meet at each of three places."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        places = torch.tensor([0, 0, 1, 1]).expand(len(x), 4)
        return x[:, :3].scatter_reduce(1, places, x, "amax", include_self=self.own)


@pytest.mark.parametrize("own", [True, False])
def test_the_first_of_equal_values_that_a_scatter_lets_meet_takes_all(own: bool) -> None:
    x = torch.tensor([[2.0, 6.0, 6.0, 5.0], [2.0, 1.0, -3.0, -3.0], [2.0, 3.0, 5.0, 5.0]])
    found = relprop.explain(Meeting(own).eval(), x, 1).relevance
    assert found[0].tolist() == ([0.0, 6.0, 0.0, 0.0] if own else [0.0, 0.0, 6.0, 0.0])
    assert found[1].tolist() == ([0.0, 1.0, 0.0, 0.0] if own else [0.0, 0.0, -3.0, 0.0])
    assert found[2].tolist() == [0.0, 0.0, 5.0, 0.0]
    assert relprop.explain(Meeting(own).eval(), x, 2).relevance[0].tolist() == [0.0, 0.0, 6.0, 0.0]
