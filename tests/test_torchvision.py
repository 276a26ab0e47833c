"""Every torchvision family of classification, segmentation and video networks is explained, and its account closes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

import relprop

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
models = torchvision.models
mvit = models.video.mvit


@dataclass(frozen=True)
class Case:
    size: tuple[int, ...]
    options: dict[str, Any]
    target: Any = None


def class_map(output: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean score of one class over a segmentation map."""
    return output["out"][:, 3].mean((1, 2))


def image(size: int, **options: Any) -> Case:
    return Case((size, size), options)


def segmentation(size: int) -> Case:
    return Case((size, size), {"weights_backbone": None}, class_map)


CASES: dict[str, Case] = {
    "alexnet": image(64),
    "vgg11": image(32),
    "vgg11_bn": image(32),
    "resnet18": image(224),
    "resnext50_32x4d": image(64),
    "wide_resnet50_2": image(64),
    "squeezenet1_0": image(32),
    "densenet121": image(32),
    "googlenet": image(64, init_weights=False),
    "inception_v3": image(75, init_weights=False, aux_logits=False),
    "mobilenet_v2": image(64),
    "mobilenet_v3_small": image(64),
    "mnasnet0_5": image(64),
    "shufflenet_v2_x0_5": image(64),
    "efficientnet_b0": image(64),
    "efficientnet_v2_s": image(64),
    "regnet_y_400mf": image(64),
    "regnet_x_400mf": image(64),
    "convnext_tiny": image(64),
    "vit_b_32": image(64, image_size=64),
    "swin_t": image(64),
    "swin_v2_t": image(64),
    "maxvit_t": image(224),
    "segmentation.deeplabv3_mobilenet_v3_large": segmentation(64),
    "segmentation.fcn_resnet50": segmentation(64),
    "segmentation.lraspp_mobilenet_v3_large": segmentation(64),
    "video.r3d_18": Case((4, 32, 32), {}),
    "video.mc3_18": Case((4, 32, 32), {}),
    "video.r2plus1d_18": Case((4, 32, 32), {}),
    "video.s3d": Case((16, 224, 224), {}),
    "video.mvit_v1_b": Case((8, 64, 64), {}),
    "video.mvit_v2_s": Case((8, 64, 64), {}),
    "video.swin3d_t": Case((4, 32, 32), {}),
}


def build(name: str, case: Case, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.Tensor]:
    """A member of the family with random weights, and batch statistics that keep its scores alive."""
    torch.manual_seed(0)
    make: Callable[..., torch.nn.Module] = models
    for part in name.split("."):
        make = getattr(make, part)
    whole = mvit._mvit  # which learns its positions for clips of one size only
    small = {"temporal_size": case.size[0], "spatial_size": case.size[1:]}
    with mock.patch.object(mvit, "_mvit", lambda **given: whole(**given | small)):
        model = make(weights=None, **case.options).to(dtype)
    count = 1 if name.startswith("video") else 2
    inputs = torch.randn(count, 3, *case.size, dtype=dtype)
    for module in model.modules():  # heads that start at zero would have no score to explain
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None
        model.train()
        with torch.no_grad():
            model(torch.randn(2, 3, *case.size, dtype=dtype))
    return model.eval(), inputs


@pytest.mark.filterwarnings(
    "ignore:relevance was blown up"
)  # random weights: the account has to close all the same
@pytest.mark.parametrize("name", CASES)
def test_account_closes_for_every_family(name: str) -> None:
    case = CASES[name]
    model, inputs = build(name, case)
    explanation = relprop.explain(model, inputs, target=case.target, rules="auto")
    audit = explanation.audit
    assert audit is not None and audit.closes
    assert explanation.relevance.shape == inputs.shape
    assert torch.isfinite(explanation.relevance).all()
    assert float(explanation.relevance.abs().sum()) > 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_account_closes_to_rounding_in_float64(name: str) -> None:
    case = CASES[name]
    model, inputs = build(name, case, torch.float64)
    audit = relprop.explain(model, inputs, target=case.target, rules="epsilon").audit
    assert audit is not None
    assert (audit.gap.abs() <= 1e-10 * torch.maximum(audit.score.abs(), audit.magnitude).clamp(min=1)).all()
