"""The models that are timed, all with random weights, and the yardstick: gradient × input of the same call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import relprop
from relprop.engine.presets import epsilon_gamma_box


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with an input: `explain(rules, options)` makes an `Explainer`'s call, `gradient()` is the yardstick."""

    name: str
    model: nn.Module
    inputs: Any
    target: Any
    leaf: Callable[[], tuple[Tensor, Tensor]]  # the input that is differentiated, and the score

    def gradient(self) -> Tensor:
        """One forward and one backward pass to the input, the weights' requires_grad as it is."""
        leaf, score = self.leaf()
        (gradient,) = torch.autograd.grad(score, leaf)
        return gradient * leaf.detach()

    def explainer(self, rules: str, **options: Any) -> relprop.Explainer:
        return relprop.Explainer(self.model, self.rules(rules), **options)

    def rules(self, name: str) -> Any:
        """A preset; the bounds of its box are those of the input."""
        if name != "epsilon_gamma_box":
            return name
        return epsilon_gamma_box(float(self.inputs.min()), float(self.inputs.max()))

    def call(self, rules: str, **options: Any) -> Callable[[], Any]:
        explainer = self.explainer(rules, **options)
        return lambda: explainer(self.inputs, self.target)


CONVOLUTIONAL = ("vgg11", "vgg16", "resnet50", "efficientnet_lite0", "convnext_tiny")
IMAGES = (*CONVOLUTIONAL, "vit_b_16")
ALL = (*IMAGES, "decoder", "lstm")


def subject(name: str, device: str = "cpu", batch: int = 2, size: int = 224, length: int = 256) -> Subject:
    """A model by its name; `size`: the side of an image, `length`: the number of tokens, steps or (of a chain) layers."""
    torch.manual_seed(0)
    if name == "decoder":
        return _decoder(device, length)
    if name == "lstm":
        return _lstm(device, 16, min(length, 200))
    if name == "long_lstm":
        return _lstm(device, 4, length)
    if name == "chain":
        return _chain(device, batch, size, length)
    return image_model(name, device, batch, size)


def image_model(name: str, device: str, batch: int, size: int) -> Subject:
    if name == "efficientnet_lite0":
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        import torchvision

        options = {"image_size": size} if name == "vit_b_16" else {}
        model = getattr(torchvision.models, name)(weights=None, **options)
    model = model.eval().to(device)
    x = torch.randn(batch, 3, size, size, device=device)

    def leaf() -> tuple[Tensor, Tensor]:
        own = x.clone().requires_grad_()
        return own, model(own).max(1).values.sum()

    return Subject(name, model, x, None, leaf)


def _decoder(device: str, length: int) -> Subject:
    """A decoder of GPT-2's size: 12 blocks of width 768, a vocabulary of 50,257; one text."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config()).eval().to(device)
    ids = torch.randint(0, 50257, (1, length), device=device)

    def leaf() -> tuple[Tensor, Tensor]:
        own = model.transformer.wte(ids).detach().requires_grad_()
        return own, model(inputs_embeds=own, use_cache=False).logits[:, -1, 7].sum()

    return Subject("decoder", model, {"input_ids": ids}, (-1, 7), leaf)


def _chain(device: str, batch: int, size: int, depth: int) -> Subject:
    """Convolutions of 64 channels, each with a ReLU, and a classifier of their mean."""
    layers = [nn.Sequential(nn.Conv2d(64 if i else 3, 64, 3, padding=1), nn.ReLU()) for i in range(depth)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval().to(device)
    x = torch.randn(batch, 3, size, size, device=device)

    def leaf() -> tuple[Tensor, Tensor]:
        own = x.clone().requires_grad_()
        return own, model(own).max(1).values.sum()

    return Subject("chain", model, x, None, leaf)


class Reader(nn.Module):
    """An LSTM that reads a series and classifies it by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(256, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 256) to (B, 10)."""
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def _lstm(device: str, batch: int, length: int) -> Subject:
    model = Reader().eval().to(device)
    x = torch.randn(batch, length, 256, device=device)

    def leaf() -> tuple[Tensor, Tensor]:
        own = x.clone().requires_grad_()
        return own, model(own).max(1).values.sum()

    return Subject("lstm", model, x, None, leaf)
