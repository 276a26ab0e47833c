"""The same explanations by zennit, captum and autoLRP, where they are installed (`pip install -e '.[benchmark]'`)."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from timing.clock import Call
from timing.subjects import Subject

PRESETS = ("epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1")


def calls(of: Subject) -> dict[str, Call]:
    """From "rival preset" to a call; each rival has a copy of the model, which two of them change."""
    found: dict[str, Call] = {}
    for name, make in {"zennit": _zennit, "captum": _captum, "autolrp": _autolrp}.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out (pip install -e '.[benchmark]')", file=sys.stderr)
            continue
        made = make(copy.deepcopy(of.model), of.inputs)
        for preset, call in made.items():
            try:
                call()
            except Exception as error:  # what a rival cannot explain is said, and left out
                first = str(error).splitlines()[0] if str(error) else ""
                print(
                    f"{name} {preset} cannot explain {of.name}: {type(error).__name__}: {first}",
                    file=sys.stderr,
                )
            else:
                found[f"{name} {preset}"] = call
    return found


def _zennit(model: nn.Module, x: Tensor) -> dict[str, Call]:
    from zennit.attribution import Gradient
    from zennit.composites import COMPOSITES, LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Convolution

    canonizer = ResNetCanonizer if type(model).__name__ == "ResNet" else VGGCanonizer

    def composite(name: str) -> object:
        if name == "epsilon":
            rules = [*layer_map_base(), (Convolution, Epsilon()), (nn.Linear, Epsilon())]
            return LayerMapComposite(rules, canonizers=[canonizer()])
        bounds = {"low": x.amin() + 0 * x[:1], "high": x.amax() + 0 * x[:1]} if name.endswith("box") else {}
        return COMPOSITES[name](canonizers=[canonizer()], **bounds)

    def call(name: str) -> Tensor:
        with Gradient(model, composite(name)) as attributor:
            return attributor(x.clone(), lambda y: y * (y == y.amax(1, keepdim=True)))[1]  # type: ignore[no-any-return]

    return {name: lambda name=name: call(name) for name in PRESETS}  # type: ignore[misc]


def _captum(model: nn.Module, x: Tensor) -> dict[str, Call]:
    from captum.attr import LRP

    with torch.no_grad():
        target = model(x).argmax(1)
    lrp = LRP(model)
    return {"epsilon": lambda: lrp.attribute(x.clone(), target=target)}


def _autolrp(model: nn.Module, x: Tensor) -> dict[str, Call]:
    import autolrp

    rules: dict[str, object] = {
        "epsilon": "epsilon",
        "epsilon_plus_flat": "zplus",
        "epsilon_gamma_box": ("gamma_montavon", {"gamma": 0.25}),
        "epsilon_alpha2_beta1": ("alpha_beta", {"alpha": 2.0, "beta": 1.0}),
    }

    def call(rule: object) -> Callable[[], Tensor]:
        config = autolrp.LRPConfig(rule={**autolrp.BASE, "ConvolutionBackward": rule}, eps=1e-6)

        def run() -> Tensor:
            wrapped = autolrp.tensor(x.clone())
            model(wrapped).max(1).values.sum().lrp(config=config)
            return wrapped.relevance  # type: ignore[no-any-return]

        return run

    return {name: call(rule) for name, rule in rules.items()}
