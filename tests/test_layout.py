"""Where the samples of a batch lie: joined, repeated and cut along the dimension of samples, each keeps what is its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop


class Branches(nn.Module):
    """Rows made of the input, a network that all rows go through, and what is made of its outputs."""

    def __init__(self, spread: Callable[[Tensor], Tensor], gather: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
        self.spread, self.gather = spread, gather
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.gather(self.net(self.spread(x)), x.shape[0])


TWINS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "joined, cut by the batch size": (lambda x: torch.cat([x, 2 * x + 1]), lambda z, b: z[:b] * z[b:]),
    "joined, cut into two": (lambda x: torch.cat([x, 2 * x + 1]), lambda z, b: z.chunk(2)[0] * z.chunk(2)[1]),
    "joined, split": (lambda x: torch.cat([x, x.sin(), 2 * x]), lambda z, b: z.split(b)[1] + z.split(b)[2]),
    "joined with a constant": (lambda x: torch.cat([x, torch.ones_like(x)]), lambda z, b: z[:b] * z[b:]),
    "stacked": (lambda x: torch.stack([x, 2 * x]).flatten(0, 1), lambda z, b: z.view(2, -1, 4).sum(0)),
    "repeated": (lambda x: x.repeat(3, 1), lambda z, b: z.view(3, b, 4).mean(0)),
    "repeated in place": (lambda x: x.repeat_interleave(3, 0), lambda z, b: z.view(b, 3, 4).mean(1)),
    "every second row": (lambda x: x.repeat_interleave(2, 0), lambda z, b: z[::2] * z[1::2]),
}

MIXED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "the first rows of the first sample": (lambda x: x.repeat_interleave(3, 0), lambda z, b: z[:b]),
    "two orders added": (
        lambda x: x.repeat_interleave(3, 0) + x.repeat(3, 1),
        lambda z, b: z.view(b, 3, 4).mean(1),
    ),
    "two orders joined": (
        lambda x: torch.cat([x.repeat_interleave(3, 0)[:, :3], x.repeat(3, 1)[:, 3:]], 1),
        lambda z, b: z.view(b, 3, 4).mean(1),
    ),
    "turned by one": (lambda x: x + x.roll(1, 0), lambda z, b: z),
    "in reverse": (lambda x: x + x.flip(0), lambda z, b: z),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_batch_is_explained_as_each_of_its_samples_is_alone(name: str) -> None:
    model = Branches(*TWINS[name])
    x = torch.randn(3, 6, dtype=torch.float64)
    together = relprop.explain(model, x, 1, "epsilon")
    alone = [relprop.explain(model, x[i : i + 1], 1, "epsilon").relevance for i in range(3)]
    assert torch.allclose(together.relevance, torch.cat(alone), atol=1e-10)
    assert float(together.relevance.abs().amin(1).min()) > 0


@pytest.mark.parametrize("name", MIXED)
def test_a_model_whose_samples_feed_each_other_is_refused(name: str) -> None:
    with pytest.raises(relprop.CaptureError, match="sample"):
        relprop.explain(Branches(*MIXED[name]), torch.randn(3, 6, dtype=torch.float64), 1, "epsilon")


def test_rows_that_change_places_and_hold_no_data_do_no_harm() -> None:
    class Marked(nn.Module):
        """A mark, the same for all, is taken from rows of the first sample: its values are those of every sample."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.mark = nn.Linear(4, 4).double(), nn.Parameter(torch.ones(1, 1, 4).double())

        def forward(self, x: Tensor) -> Tensor:
            frames = torch.cat(
                [self.mark.expand(x.shape[0] * x.shape[1], -1, -1), x.flatten(0, 1)[:, None]], 1
            )
            mark = frames[: x.shape[0], :1]
            return self.net(torch.cat([mark, frames[:, 1:].reshape(x.shape)], 1)).mean(1)

    explanation = relprop.explain(Marked().eval(), torch.randn(3, 5, 4, dtype=torch.float64), 1, "epsilon")
    assert explanation.audit is not None
    assert float(explanation.audit.gap.abs().max()) < 1e-10


def test_what_runs_under_vmap_is_explained_as_what_it_stands_for() -> None:
    class Mapped(nn.Module):
        def __init__(self, mapped: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.mapped = nn.Linear(6, 6).double(), mapped

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(6)
            if self.mapped:
                rows = torch.vmap(lambda a: torch.vmap(lambda b: a >= b)(places))(places)
                return torch.vmap(lambda v: self.net(v).relu())(x) @ rows.to(x.dtype)
            return self.net(x).relu() @ (places[:, None] >= places).to(x.dtype)

    torch.manual_seed(1)
    x = torch.randn(3, 6, dtype=torch.float64)
    mapped, plain = (relprop.explain(Mapped(way).eval(), x, 5, "epsilon").relevance for way in (True, False))
    assert float(plain.abs().max()) > 0.01
    assert torch.allclose(mapped, plain, atol=1e-4)  # a bias added on its own is stabilised on its own


class Alongside(nn.Module):
    """Layers around what looks at the rows beside a row, in a form that leaves their number as it is."""

    def __init__(self, look: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.upper = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
        self.look = look
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.look(self.lower(x)))


KERNEL = torch.linspace(-1, 1, 36 * 3, dtype=torch.float64).reshape(6, 6, 3)
BESIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda h: F.conv1d(h.t(), KERNEL, padding=1).t(),
    "average pooling": lambda h: F.avg_pool1d(h.t(), 3, 1, 1).t(),
    "max pooling": lambda h: F.max_pool1d(h.t(), 3, 1, 1).t(),
    "layer norm": lambda h: F.layer_norm(h.t(), [h.shape[0]]).t(),
    "group norm": lambda h: F.group_norm(h[None], 1)[0],
    "a Fourier transform": lambda h: torch.fft.fft2(h).real,
    "windows": lambda h: F.pad(h.t(), (1, 0)).t().unfold(0, 2, 1).mean(-1),
    "differences": lambda h: h - torch.cat([h[:1], h[:-1]]),
    "the place in the batch": lambda h: h * torch.arange(1, h.shape[0] + 1)[:, None],
    "a triangle": lambda h: h.tril(),
    "a constant matrix": lambda h: h.new_ones(h.shape[0], h.shape[0]) @ h,
    "the mean": lambda h: h - h.mean(0),
}


@pytest.mark.parametrize("how", BESIDE)
def test_a_sample_that_gets_another_output_in_a_batch_than_alone_is_refused(how: str) -> None:
    model, x = Alongside(BESIDE[how]), torch.randn(3, 6, dtype=torch.float64)
    with pytest.raises(relprop.CaptureError, match="sample"):
        relprop.explain(model, x, 1, "epsilon")


@pytest.mark.parametrize("how", ["layer norm", "differences", "the mean"])
def test_what_is_explained_before_and_in_which_parts_hides_no_mixture_of_samples(how: str) -> None:
    model, x = Alongside(BESIDE[how]), torch.randn(3, 6, dtype=torch.float64)
    explainer = relprop.Explainer(model, "epsilon")
    with contextlib.suppress(relprop.CaptureError):
        assert torch.equal(explainer(x[:1], 1).output, model(x[:1]).detach())
    for again in (explainer, relprop.Explainer(model, "epsilon", batch_size=1)):
        with pytest.raises(relprop.CaptureError, match="sample"):
            again(x, 1)


def test_one_number_a_sample_may_be_given_another_dimension() -> None:
    class Scored(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)[:, None] * x.new_ones(3)

    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.allclose(relprop.explain(Scored().eval(), x, 1, "epsilon").relevance, x, atol=1e-4)


def test_an_input_of_all_samples_as_long_as_the_batch_is_not_taken_for_samples() -> None:
    class Mixture(nn.Module):
        def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
            return x @ prototypes.sum(0)[:, None]

    x, prototypes = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    with pytest.raises(relprop.CaptureError, match="samples"):
        relprop.explain(Mixture().eval(), (x, prototypes), 0, "epsilon")


class Grouped(nn.Module):
    """A kernel for each sample, the samples as groups of one convolution."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixed, self.kernels = mixed, nn.Parameter(torch.randn(3, 4 * 2 * 3 * 3).double())
        self.routing, self.head = nn.Linear(2, 3).double(), nn.Linear(4, 3, bias=False).double()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        parts = torch.softmax(self.routing(x.mean((2, 3))), -1) if self.mixed else x.new_ones(count, 3)
        kernels = (parts @ self.kernels).view(count * 4, channels, 3, 3)
        merged = F.conv2d(x.reshape(1, count * channels, height, width), kernels, padding=1, groups=count)
        return self.head(merged.view(count, 4, height, width).relu().mean((2, 3)))


@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("mixed", [True, False])
def test_kernels_of_samples_as_groups_of_one_convolution(mixed: bool, rules: str) -> None:
    model, x = Grouped(mixed), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    explainer = relprop.Explainer(model, rules)
    together = explainer(x, 1)
    alone = torch.cat([explainer(x[i : i + 1], 1).relevance for i in range(3)])
    assert torch.allclose(together.relevance, alone, atol=1e-9)
    assert torch.allclose(explainer(x[:2], 1).relevance, alone[:2], atol=1e-9)
    if not mixed and rules == "epsilon":
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        assert torch.allclose(together.relevance, gradient * x, atol=1e-5)


@pytest.mark.parametrize("product", [torch.matmul, torch.bmm])
@pytest.mark.parametrize("rule", [relprop.rules.Flat(), relprop.rules.WSquare()])
def test_rules_that_leave_the_input_out_see_each_samples_own_matrix(
    product: Callable[[Tensor, Tensor], Tensor], rule: relprop.rules.Rule
) -> None:
    class Graph(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return product(edges.to(x.dtype), x).sum(1)

    torch.manual_seed(0)
    x, edges = torch.randn(3, 4, 2, dtype=torch.float64), torch.rand(3, 4, 4) > 0.4
    together = relprop.explain(Graph().eval(), (x, edges), 1, rule).relevance[0]
    alone = [
        relprop.explain(Graph().eval(), (x[i, None], edges[i, None]), 1, rule).relevance[0] for i in range(3)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-10)
