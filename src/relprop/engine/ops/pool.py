"""Pooling, up-sampling and reductions: averages and sums are linear, maxima are selections."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, name_of, refs
from relprop.engine.ops.linear import LINEAR_RULES, adjoint, affine, by_rule, obeyed
from relprop.engine.ops.norm import first_part, named_arguments
from relprop.engine.ops.table import Operation, first_known, register, rows
from relprop.engine.ops.window import gathered, scattered, windows_of
from relprop.engine.rules import RULES, Affine, Attention, Epsilon, MaxPool, Pass, Product, Softmax
from relprop.engine.rules.affine import add
from relprop.engine.spectra import complex_linear
from relprop.engine.step import Shares, Step, one_of


def average(step: Step, relevance: Tensor) -> Shares:
    """Averages, sums and interpolations: linear with weights ≥ 0 (the interpolation by bicubics and the places of an
    affine map, whose weights are not, only under ε)."""
    x = step.args[0]

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return step.function(x, *step.args[1:], **step.kwargs)  # type: ignore[no-any-return]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    return by_rule(step, 0, affine(step, 0, None, None, apply, transpose), relevance)


def from_complex(step: Step, relevance: Tensor) -> Shares:
    """A Fourier transform, a rotation by complex numbers: real numbers that are linear in real numbers, under ε.

    What the stabiliser takes is always absorbed: inputs are not connected or apart here, over which it could be spread.
    """
    segment, x, *rest = step.args

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return complex_linear(segment, x, *rest)

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    rule = dataclasses.replace(step.rule, bias="absorb") if isinstance(step.rule, Epsilon) else step.rule
    shares, absorbed = obeyed(step, rule, affine(step, 1, None, None, apply, transpose), relevance)
    return Shares({1: shares}, absorbed)


def dimensions(step: Step, x: Tensor) -> tuple[tuple[int, ...], bool]:
    """The dimensions that a reduction runs over, counted from the front, and whether they are kept with size
    1."""
    a = named_arguments(step)
    dim = a.get("dim")
    given = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return tuple(d % max(1, x.dim()) for d in given), bool(a.get("keepdim", False))


def kept(values: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """The result of a reduction with the reduced dimensions at size 1, so that it broadcasts to the input."""
    if keepdim:
        return values
    for dim in sorted(dims):
        values = values.unsqueeze(dim)
    return values


def rows_of(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x with the reduced dimensions last and as one: […, K]."""
    if not dims:
        return x.unsqueeze(-1)
    return x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))


def from_rows(rows: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The inverse of `rows_of`."""
    if not dims:
        return rows.squeeze(-1)
    sizes = [like.shape[d] for d in dims]
    return rows.reshape(*rows.shape[:-1], *sizes).movedim(tuple(range(-len(dims), 0)), dims)


def _share_terms(
    step: Step, terms: Tensor, relevance: Tensor, dims: tuple[int, ...], index: int | None
) -> Shares:
    """A function of Σ terms over dimensions, all terms ≥ 0: the identity, then the sum by the step's linear
    rule."""

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return x.sum(dims, keepdim=True) if dims else x

    ref = next(refs(step.node.args[0]))
    layout = step.layout_of(ref)
    keepdim = dimensions(step, terms)[1]

    def account(values: Tensor) -> Tensor:
        return step.account(values if keepdim else values.squeeze(dims), index)

    f = Affine(
        x=terms,
        weight=None,
        bias=None,
        output=apply(terms, None),
        apply=apply,
        transpose=lambda v, w: v.expand(terms.shape),
        part=lambda name: None,
        nonnegative=True,
        account=account,
        batch_dimension=None if layout is None else layout.dimension,
    )
    shares, absorbed = RULES[type(step.rule)](step.rule, f, kept(relevance, dims, keepdim))
    return Shares({0: shares}, absorbed)


def norm(step: Step, relevance: Tensor) -> Shares:
    """‖x‖_p = (Σ |x_i|^p)^(1/p): the identity through the root, |x_i|^p in proportion; p = ∞: the largest
    takes all."""
    x = step.args[0]
    a = named_arguments(step)
    order = a.get("ord", a.get("p", 2))
    order = 2 if order is None else order
    dims, _ = dimensions(step, x)
    if abs(order) == float("inf"):
        rows = rows_of(x.abs(), dims)
        shares, _ = _share_windows(
            MaxPool(), rows, None, relevance.reshape(rows.shape[:-1]), 1 if order > 0 else -1
        )
        return Shares({0: from_rows(shares, x, dims)})
    return _share_terms(step, x.abs().pow(order), relevance, dims, None)


def _no_sum(node: Node) -> str | None:
    order = node.args[1] if len(node.args) > 1 else node.kwargs.get("ord", node.kwargs.get("p", 2))
    if isinstance(order, (int, float)) and order <= 0 and order != -float("inf"):
        return f"a norm of order {order} is no sum of its values' parts"
    return None


def deviation(step: Step, relevance: Any) -> Shares:
    """Standard deviation and variance, with their mean where that is a second output.

    The identity through the root, (x_i − m)² in proportion, m a constant; the mean is a sum like any other.
    """
    r, index = first_part(relevance)
    x = step.args[0]
    dims, keepdim = dimensions(step, x)
    total: Tensor | None = None
    absorbed: dict[str, Tensor] = {}
    if r is not None:
        squares = (x - x.mean(dims, keepdim=True)).square()
        first = _share_terms(step, squares, r, dims, index)
        total, absorbed = first.arguments[0], first.absorbed
    if index is not None and relevance[1] is not None:
        shares, more = _share_mean(step, x, relevance[1], dims, keepdim)
        total = shares if total is None else total + shares
        for reason, amount in more.items():
            add(absorbed, reason, amount)
    return Shares({0: total}, absorbed)


def _share_mean(
    step: Step, x: Tensor, relevance: Tensor, dims: tuple[int, ...], keepdim: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    def account(values: Tensor) -> Tensor:
        return step.account(values if keepdim else values.squeeze(dims), 1)

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return x.mean(dims, keepdim=True)

    layout = step.layout_of(next(refs(step.node.args[0])))
    f = Affine(
        x=x,
        weight=None,
        bias=None,
        output=apply(x, None),
        apply=apply,
        transpose=lambda v, w: adjoint(lambda y: apply(y, None), x, v),
        part=lambda name: None,
        nonnegative=step.nonnegative(0),
        account=account,
        batch_dimension=None if layout is None else layout.dimension,
    )
    result: tuple[Tensor, dict[str, Tensor]] = RULES[type(step.rule)](
        step.rule, f, kept(relevance, dims, keepdim)
    )
    return result


def factors(step: Step, relevance: Tensor) -> Shares:
    """A product of n factors: 1/n to each (AttnLRP, Prop. 3.2), or in proportion to their values or absolute
    values."""
    x = step.args[0]
    dims, keepdim = dimensions(step, x)
    r = kept(relevance, dims, keepdim)
    rule = step.rule if isinstance(step.rule, Product) else Product("half")
    count = rows_of(x, dims).shape[-1]
    if rule.how in ("half", "signal"):
        return Shares({0: (r / count).expand(x.shape)})
    rows = rows_of(x.abs() if rule.how == "abs" else x, dims)
    shares, amounts = in_proportion(rows, r.squeeze(dims) if dims else r, rule.epsilon)
    shape = relevance.shape
    return Shares(
        {0: from_rows(shares, x, dims)}, {k: step.account(v.reshape(shape)) for k, v in amounts.items()}
    )


def running_factors(step: Step, relevance: Tensor) -> Shares:
    """y_i = Π_{j ≤ i} x_j: each of the i factors gets 1/i of R_i."""
    dim = named_arguments(step)["dim"]
    shape = [1] * relevance.dim()
    if not shape:
        return Shares({0: relevance})
    shape[dim] = -1
    counts = torch.arange(
        1, relevance.shape[dim] + 1, device=relevance.device, dtype=relevance.dtype
    ).reshape(shape)
    return Shares({0: (relevance / counts).flip(dim).cumsum(dim).flip(dim)})


def in_proportion(rows: Tensor, relevance: Tensor, epsilon: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Shares of rows [..., K] in the relevance [...] of their sum, with the signed stabiliser; amounts lost
    [...]."""
    total = rows.sum(-1)
    stabiliser = torch.copysign(total.new_full((), epsilon), total)
    d = total + stabiliser
    s = torch.where(d == 0, 0.0, relevance / d)
    lost = torch.where(d == 0, relevance, 0.0)
    return rows * s.unsqueeze(-1), {"stabilizer": s * stabiliser, "undistributed": lost}


def by_index(step: Step, relevance: Any) -> Shares:
    """Selections by rank (sort, top-k, k-th value, median, running maximum): each value comes from where it
    stood."""
    r, _ = first_part(relevance)
    x = step.args[0]
    a = named_arguments(step)
    index = step.output[1]
    dim = a.get("dim", -1) % max(1, x.dim())
    if x.dim() and index.dim() < x.dim():
        index, r = index.unsqueeze(dim), r.unsqueeze(dim)
    return Shares({0: torch.zeros_like(x, dtype=r.dtype).scatter_add(dim, index, r)})


def middle(step: Step, relevance: Tensor) -> Shares:
    """The median of all values: the first value that equals it takes all."""
    x = step.args[0]
    flat = x.flatten()
    place = (flat == step.output).to(torch.uint8).argmax()
    shares = torch.zeros_like(flat, dtype=relevance.dtype).index_add(0, place[None], relevance[None])
    return Shares({0: shares.reshape(x.shape)})


def extreme(step: Step, relevance: Any) -> Shares:
    """The largest or smallest value over dimensions, by the rule `MaxPool`; of equals the first wins.

    Torch spreads the gradient of amax, amin and of max over everything evenly over equal values, so this is
    explicit.
    """
    r, index = first_part(relevance)
    x = step.args[0]
    dims, _ = dimensions(step, x)
    sign = -1 if step.node.operation.startswith(("aten.amin", "aten.min")) else 1
    rows = rows_of(x, dims)
    shares, amounts = _share_windows(_rule(step), rows, None, r.reshape(rows.shape[:-1]), sign)
    absorbed = {k: step.account(v.reshape(r.shape), index) for k, v in amounts.items()}
    return Shares({0: from_rows(shares, x, dims)}, absorbed)


def _rule(step: Step) -> MaxPool:
    return step.rule if isinstance(step.rule, MaxPool) else MaxPool()


def _share_windows(
    rule: MaxPool, values: Tensor, valid: Tensor | None, relevance: Tensor, sign: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Shares of the values of windows [..., K] in the relevance [...] of their maxima; amounts lost [...].

    Places that are not `valid` get nothing. `sign` is −1 for minima.
    """
    r = relevance.unsqueeze(-1)
    if rule.how == "proportional":
        return in_proportion(
            values if valid is None else torch.where(valid, values, 0.0), relevance, rule.epsilon
        )
    ranked = values * sign if valid is None else torch.where(valid, values * sign, -torch.inf)
    if rule.how == "softmax":
        return r * torch.softmax(rule.beta * ranked, -1), {}
    best = ranked == ranked.amax(-1, keepdim=True)
    if rule.how == "winner":
        best = best & (best.cumsum(-1) == 1)
    return r * best / best.sum(-1, keepdim=True), {}


def max_pool(step: Step, relevance: Any) -> Shares:
    """Max pooling of any rank, fixed or adaptive, by the rule `MaxPool`; overlapping windows add up."""
    r, index = first_part(relevance)
    rule = _rule(step)
    x = step.args[0]
    if rule.how == "winner" and step.memory is not None:
        return Shares({0: _to_winners(step, r)})
    if rule.how == "winner":  # torch's own backward pass: its winner is the first of equals
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            result = step.function(leaf, *step.args[1:], **step.kwargs)
        first = result if index is None else result[0]
        return Shares({0: torch.autograd.grad(first, leaf, r)[0]})
    windows = windows_of(step.node.operation, named_arguments(step), x, r)
    values = gathered(x, windows)
    shares, amounts = _share_windows(rule, values, windows.valid, r.reshape(values.shape[:-1]))
    absorbed = {k: step.account(v.reshape(r.shape), index) for k, v in amounts.items()}
    return Shares({0: scattered(shares, x, windows)}, absorbed)


def _pool_with_winners(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """max_pool2d and the place of each window's winner."""
    return torch.ops.aten.max_pool2d_with_indices(*args, **kwargs)  # type: ignore[no-any-return]


def _to_winners(step: Step, relevance: Tensor) -> Tensor:
    a = named_arguments(step)
    window = (a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
    x, winners = step.args[0].to(relevance.dtype), step.memory
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    if one_of(winners) is winners or x.device.type != "cpu":
        shares: Tensor = backward(relevance, x, *window, winners)
        return shares
    shares, ones = x.new_empty(x.shape), [1] * len(x)  # the winners of one sample are those of all
    for r, own in zip(relevance.split_with_sizes(ones), shares.split_with_sizes(ones), strict=True):
        backward.grad_input(r, x[:1], *window, winners[:1], grad_input=own)
    return shares


def log_sum_exp(step: Step, relevance: Tensor) -> Shares:
    """log Σ exp x_j: R_j = softmax(x)_j R (Kauffmann et al. 2020), conserved, whatever the rule: these weights are
    constants."""
    x = step.args[0]
    dims, keepdim = dimensions(step, x)
    r = kept(relevance, dims, keepdim)
    weights = torch.softmax(rows_of(x, dims).to(r.dtype), -1)
    return Shares({0: r * from_rows(weights, x, dims)})


def running_log_sum_exp(step: Step, relevance: Tensor) -> Shares:
    """y_i = log Σ_{j ≤ i} exp x_j: R_i in the parts exp(x_j − y_i), as for logsumexp; summed from the last i on, so that no
    exponential is above 1."""
    x, y = step.args[0].to(relevance.dtype), step.output.to(relevance.dtype)
    dim = named_arguments(step)["dim"]
    if not x.dim():
        return Shares({0: relevance})
    falls = torch.exp(-y.diff(dim=dim)).unbind(dim)
    later = list(relevance.unbind(dim))
    for i in range(len(later) - 2, -1, -1):
        later[i] = later[i] + falls[i] * later[i + 1]
    return Shares({0: torch.exp(x - y) * torch.stack(later, dim)})


_AVERAGE = Operation("pool", average, "both", Epsilon(), LINEAR_RULES, first_known(0), proportional=True)
_MAX = (MaxPool, Pass)
rows(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
    " _adaptive_avg_pool2d _adaptive_avg_pool3d mean mean.dim sum sum.dim_IntList nansum nanmean cumsum unfold_backward"
    " upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec upsample_linear1d"
    " upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa.vec _upsample_bilinear2d_aa",
    _AVERAGE,
)
rows(
    "upsample_bicubic2d.vec upsample_bicubic2d _upsample_bicubic2d_aa.vec _upsample_bicubic2d_aa"
    " affine_grid_generator",
    Operation("pool", average, "both", Epsilon(), (Epsilon,)),
)
rows(
    "linalg_vector_norm norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dtype norm.ScalarOpt_dim_dtype"
    " frobenius_norm.dim",
    Operation("pool", norm, "inputs", Epsilon(), LINEAR_RULES, "always", _no_sum),
)
rows(
    "std std.dim std.correction var var.dim var.correction",
    Operation("pool", deviation, "inputs", Epsilon(), LINEAR_RULES, "always"),
)
rows(
    "std_mean std_mean.dim std_mean.correction var_mean var_mean.dim var_mean.correction",
    Operation("pool", deviation, "inputs", Epsilon(), LINEAR_RULES, first_known(0)),
)
rows(
    "prod prod.dim_int",
    Operation("product", factors, "inputs", Product(), (Product, Pass), first_known(0)),
)
rows("cumprod", Operation("product", running_factors, "nothing", Product(), (Product, Pass), first_known(0)))
register(name_of(complex_linear), Operation("pool", from_complex, "both", Epsilon(), (Epsilon,)))
rows(
    "max_pool1d max_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices"
    " adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    Operation("max", max_pool, "inputs", MaxPool(), _MAX, first_known(0)),
)
rows(
    "max_pool2d",
    Operation("max", max_pool, "inputs", MaxPool(), _MAX, first_known(0), remembers=_pool_with_winners),
)
rows(
    "fractional_max_pool2d fractional_max_pool3d",
    Operation("max", max_pool, "inputs", Pass(), (Pass,), first_known(0)),
)
rows("logsumexp", Operation("softmax", log_sum_exp, "inputs", Softmax(), (Softmax, Attention, Pass)))
rows("logcumsumexp", Operation("softmax", running_log_sum_exp, "both", Pass(), (Pass,)))
rows(
    "max min max.dim min.dim amax amin", Operation("max", extreme, "inputs", MaxPool(), _MAX, first_known(0))
)
rows(
    "sort sort.stable topk kthvalue median.dim nanmedian.dim mode cummax cummin",
    Operation("max", by_index, "both", MaxPool(), _MAX, first_known(0)),
)
rows("median nanmedian", Operation("max", middle, "both", MaxPool(), _MAX, first_known(0)))
