"""Sanity: does an explanation depend on what the model has learned, and on the class that is explained?

A method that answers alike for a model with random weights explains the input, not the model (Adebayo et al. 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relprop.engine.modules import unwrapped
from relprop.errors import InvalidInput
from relprop.evaluate.arrays import ratio, rows
from relprop.evaluate.perturb import explained
from relprop.evaluate.scoring import Scorer
from relprop.evaluate.similarity import similarity_to
from relprop.evaluate.stability import Explain, changed_inputs, target_of
from relprop.explain.captured import adopt


def layers_of(model: Any) -> list[str]:
    """The paths of the modules that have parameters of their own, in the order of the model's definition."""
    module = _module(model)
    return [
        path for path, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))
    ]


def _module(model: Any) -> nn.Module:
    module = unwrapped(model)
    if not isinstance(module, nn.Module):
        raise InvalidInput(
            f"model: the parameters of {type(module).__name__} cannot be randomised\n  do: give the torch.nn.Module"
        )
    return module


def randomised(
    model: Any, layers: Sequence[str], cascade: bool = True, how: str = "reset", seed: int = 0
) -> Iterator[nn.Module]:
    """One copy of the model with a layer more randomised each time (or with cascade=False that layer alone).

    The copy is the same object at every step and is not to be kept; the model itself is not touched.

    Args:
        layers: paths of modules, in the order in which they are randomised.
        how: "reset" by the layer's own initialiser (running statistics of batch norm too), by permutation where it has none;
            "permute": the weights of each parameter are shuffled.
        seed: of all of it; each layer has a number of its own.
    """
    if how not in ("reset", "permute"):
        raise InvalidInput(f"how: {how!r} is unknown\n  do: 'reset' or 'permute'")
    own = _module(model)
    wrong = sorted(set(layers) - set(layers_of(own)))
    if wrong or not layers:
        raise InvalidInput(
            f"layers: {', '.join(wrong) or 'none'}: no modules with parameters\n  do: some of {', '.join(layers_of(own))}"
        )
    twin = copy.deepcopy(own)
    adopt(twin, own)
    kept = {name: value.detach().clone() for name, value in own.state_dict().items()}
    for number, path in enumerate(layers):
        if not cascade:
            twin.load_state_dict(kept)
        _randomise(twin.get_submodule(path), how, seed + number)
        yield twin


def _randomise(layer: nn.Module, how: str, seed: int) -> None:
    devices = sorted({p.device.index or 0 for p in layer.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad():
        # torch.manual_seed looks at every kind of accelerator, which takes longer than a small layer
        (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if how == "reset" and callable(reset):
            reset()
            return
        for parameter in layer.parameters(recurse=False):
            order = torch.randperm(parameter.numel(), device="cpu").to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))


def mprt(
    explain: Explain,
    model: Any,
    scorer: Scorer,
    relevance: Any,
    *,
    layers: Sequence[str] | None = None,
    order: str = "top_down",
    cascade: bool = True,
    how: str = "reset",
    similarity: str = "spearman",
    seed: int = 0,
) -> Tensor:
    """Similarity to the original explanation after each layer is randomised (Adebayo et al. 2018), (B, L): lower passes.

    Args:
        relevance: the original explanation; it is computed once, by the caller.
        layers: which, in the model's order; by default all that have parameters.
        order: "top_down" from the output on, or "bottom_up".
        similarity: a key of `SIMILARITIES`. NaN where a map is constant.

    Top-down curves of networks with ReLUs keep much of the input's structure, and noisy methods look better (Sixt et al. 2020,
    Binder et al. 2023): a curve to be read, no ranking of methods.
    """
    if order not in ("top_down", "bottom_up"):
        raise InvalidInput(f"order: {order!r} is unknown\n  do: 'top_down' or 'bottom_up'")
    like = similarity_to(similarity, explained(relevance, scorer))
    named = layers_of(model) if layers is None else list(layers)
    named = named[::-1] if order == "top_down" else named
    everyone = torch.arange(len(scorer), device=scorer.inputs.device)
    inputs, target = changed_inputs(scorer, scorer.inputs, everyone), target_of(scorer, everyone)
    found = [
        like(explained(explain(twin, inputs, target), scorer))
        for twin in randomised(model, named, cascade, how, seed)
    ]
    return torch.stack(found, 1)


def data_randomisation(
    explain: Explain, other: Any, scorer: Scorer, relevance: Any, *, similarity: str = "spearman"
) -> Tensor:
    """Similarity to the explanation of the same network trained on permuted labels (Adebayo et al. 2018), (B,): lower passes.

    Args:
        other: that network. It has learned its labels by heart, and nothing of what the data means.
        relevance: the explanation of the model itself, of the same targets.
    """
    if other is None:
        raise InvalidInput(
            "data_randomisation: it needs the same network trained on permuted labels\n"
            "  do: give it: metrics={'data_randomisation': {'other': network}}"
        )
    like = similarity_to(similarity, explained(relevance, scorer))
    everyone = torch.arange(len(scorer), device=scorer.inputs.device)
    again = explain(other, changed_inputs(scorer, scorer.inputs, everyone), target_of(scorer, everyone))
    return like(explained(again, scorer))


def histogram_entropy(relevance: Any, bins: int = 100) -> Tensor:
    """The entropy in nats of the histogram of each map between its extremes, (B,)."""
    values = rows(relevance)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    place = (
        (ratio(values - low, (high - low).expand_as(values)).nan_to_num(nan=0.0) * bins)
        .long()
        .clamp(max=bins - 1)
    )
    counts = torch.zeros(len(values), bins, dtype=values.dtype, device=values.device)
    counts.scatter_add_(1, place, torch.ones_like(values))
    share = counts / values.shape[1]
    found: Tensor = -torch.special.xlogy(share, share).sum(1)
    return found


def emprt(
    explain: Explain,
    model: Any,
    scorer: Scorer,
    relevance: Any,
    *,
    bins: int = 100,
    how: str = "reset",
    seed: int = 0,
) -> Tensor:
    """(H(R of the random model) − H(R)) / H(R), H the histogram's entropy (Hedström et al. 2024), (B,): higher passes."""
    everyone = torch.arange(len(scorer), device=scorer.inputs.device)
    *_, twin = randomised(model, layers_of(model), True, how, seed)
    again = explain(twin, changed_inputs(scorer, scorer.inputs, everyone), target_of(scorer, everyone))
    before = histogram_entropy(explained(relevance, scorer), bins)
    return ratio(histogram_entropy(explained(again, scorer), bins) - before, before)


def random_logit(
    explain: Explain, model: Any, scorer: Scorer, relevance: Any, *, similarity: str = "spearman", seed: int = 0,
    samples: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Similarity to the explanation of another class, drawn for each sample (Sixt et al. 2020), (B,): lower passes.

    Raises `InvalidInput` where the target is no class, or there is only one.
    """
    import numpy as np

    weights, target = scorer.weights, scorer.target
    if (
        weights is None
        or weights.dim() != 2
        or weights.shape[1] < 2
        or not isinstance(target, Tensor)
        or target.is_floating_point()
    ):
        raise InvalidInput(
            "random_logit: it explains another class, and the model or the target has none\n  do: give classes as target, of a model with two or more"
        )
    like = similarity_to(similarity, explained(relevance, scorer))
    classes = weights.shape[1]
    numbers = samples or range(len(scorer))
    steps = [int(np.random.default_rng([seed, int(s), 5]).integers(1, classes)) for s in numbers]
    other = (target.cpu() + torch.tensor(steps)) % classes
    everyone = torch.arange(len(scorer), device=scorer.inputs.device)
    again = explain(model, changed_inputs(scorer, scorer.inputs, everyone), other)
    return like(explained(again, scorer))
