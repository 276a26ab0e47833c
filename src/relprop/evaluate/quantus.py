"""Quantus runs over relprop's methods: any of its metrics, by one call. Its numbers are its own; docs/evaluation.md compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relprop.evaluate.arrays import given
from relprop.evaluate.cases import Data, methods_of
from relprop.evaluate.scoring import scorer_of


class QuantusFunction:
    """A method as Quantus' `explain_func`: called with a model, arrays and targets, it returns an array (B, 1, …).

    Channels of images are summed, so that a metric flips pixels and not single values of a channel.

    Args:
        method: as an entry of `compare`'s methods: a name, "lrp:PRESET", a dict of an `Explainer`'s arguments, or a callable.
    """

    def __init__(self, method: Any = "lrp") -> None:
        self.method = methods_of({"method": method})[0]

    def __call__(self, model: Any, inputs: Any, targets: Any, **options: Any) -> NDArray[np.float64]:
        """The relevance of a batch; `options` such as Quantus' device are taken where they mean something here."""
        device = options.get("device")
        held = (
            next((p for p in model.parameters() if p.is_floating_point()), None)
            if hasattr(model, "parameters")
            else None
        )
        x = torch.as_tensor(np.asarray(inputs)).to(device=device or (None if held is None else held.device))
        x = x.to(held.dtype) if held is not None and x.is_floating_point() else x
        chosen = torch.as_tensor(np.asarray(targets)).reshape(-1).long()
        found = given(self.method.explain(model, x, chosen))
        found = found.sum(1, keepdim=True) if found.dim() >= 4 else found
        array: NDArray[np.float64] = found.cpu().numpy()
        return array


def quantus_scores(
    metric: Any, model: Any, data: Any, methods: Sequence[Any] | Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """What a Quantus metric says of each method.

    Args:
        metric: an instance, such as `quantus.PixelFlipping(…)`.
        model: a torch.nn.Module in eval mode, with one input.
        data: inputs, or a `Data` with targets (else each sample's largest output) and masks.
        methods: as for `compare`.
        options: of the metric's call: softmax, device, batch_size, ….

    Returns:
        What the metric returns, by method.
    """
    held = data if isinstance(data, Data) else Data(data)
    scorer = scorer_of(model, held.inputs, held.target)
    masks = (
        None
        if held.mask is None
        else held.mask.reshape(len(held), 1, *held.mask.shape[-2:]).cpu().numpy().astype(int)
    )
    call = {
        "model": model,
        "x_batch": scorer.inputs.cpu().numpy(),
        "y_batch": np.asarray(torch.as_tensor(scorer.target).cpu()),
        "a_batch": None,
        "s_batch": masks,
        "channel_first": True,
        "softmax": False,
    }
    return {
        one.name: metric(**{**call, **options, "explain_func": QuantusFunction(one.explain)})
        for one in methods_of(methods)
    }
