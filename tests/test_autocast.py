"""Within torch.autocast the forward pass is the model's own, in half precision; the walk is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import relprop


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ZeroPad2d(1),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    ).eval()


@pytest.mark.parametrize("rules", ["auto", "epsilon_plus_flat", "epsilon"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_account_closes_and_the_relevance_is_near(rules: str, dtype: torch.dtype) -> None:
    model, x = network(), torch.randn(3, 3, 16, 16)
    exact = relprop.explain(copy.deepcopy(model), x, 2, rules)
    asked = relprop.explain(copy.deepcopy(model), x, 2, rules, autocast=dtype)
    with torch.autocast("cpu", dtype):
        own = model(x)
        found = relprop.explain(model, x, 2, rules)
    assert own.dtype == dtype
    assert torch.allclose(found.score, own[:, 2].float(), atol=1e-3)  # a fold rounds elsewhere
    assert torch.equal(found.relevance, asked.relevance)
    assert found.audit is not None
    assert float(found.audit.gap.abs().max()) < 1e-5
    pair = torch.stack([found.relevance.flatten(), exact.relevance.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.99


def test_what_was_explained_within_autocast_leaves_the_rest_exact() -> None:
    model, x = network(), torch.randn(3, 3, 16, 16)
    expected = relprop.explain(copy.deepcopy(model), x, 2).relevance
    explainer = relprop.Explainer(model)
    with torch.autocast("cpu", torch.bfloat16):
        first = explainer(x, 2).relevance
    assert torch.equal(explainer(x, 2).relevance, expected)
    assert not torch.equal(first, expected)
