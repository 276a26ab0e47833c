"""Where the samples of a batch lie: joined, repeated and cut along the dimension of samples, each keeps what is its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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
