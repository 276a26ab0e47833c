"""torchvision: classification, segmentation, detection, video and optical flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from families import Case, alive, steady


class Detector(nn.Module):
    """A detector as a function of a batch of images: the scores of its first detections, (B,)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([found["scores"][0] for found in self.model(list(images.unbind(0)))])


def _class_map(output: dict[str, Tensor]) -> Tensor:
    """The mean score of one class over a segmentation map."""
    return output["out"][:, 3].mean((1, 2))


def _flow(output: list[Tensor]) -> Tensor:
    """The mean horizontal flow of the last iteration."""
    return output[-1][:, 0].mean((1, 2))


Row = tuple[str, tuple[int, ...], dict[str, Any], Callable[[Any], Tensor] | None]
ROWS: dict[str, Row] = {
    "alexnet": ("alexnet", (64, 64), {}, None),
    "convnext": ("convnext_tiny", (64, 64), {}, None),
    "densenet": ("densenet121", (32, 32), {}, None),
    "efficientnet": ("efficientnet_b0", (64, 64), {}, None),
    "efficientnet_v2": ("efficientnet_v2_s", (64, 64), {}, None),
    "googlenet": ("googlenet", (64, 64), {"init_weights": False}, None),
    "inception": ("inception_v3", (75, 75), {"init_weights": False, "aux_logits": False}, None),
    "maxvit": ("maxvit_t", (224, 224), {}, None),
    "mnasnet": ("mnasnet0_5", (64, 64), {}, None),
    "mobilenet_v2": ("mobilenet_v2", (64, 64), {}, None),
    "mobilenet_v3": ("mobilenet_v3_small", (64, 64), {}, None),
    "regnet_x": ("regnet_x_400mf", (64, 64), {}, None),
    "regnet_y": ("regnet_y_400mf", (64, 64), {}, None),
    "resnet": ("resnet18", (64, 64), {}, None),
    "resnext": ("resnext50_32x4d", (64, 64), {}, None),
    "shufflenet_v2": ("shufflenet_v2_x0_5", (64, 64), {}, None),
    "squeezenet": ("squeezenet1_0", (32, 32), {}, None),
    "swin": ("swin_t", (64, 64), {}, None),
    "swin_v2": ("swin_v2_t", (64, 64), {}, None),
    "vgg": ("vgg11", (32, 32), {}, None),
    "vgg_bn": ("vgg11_bn", (32, 32), {}, None),
    "vit": ("vit_b_32", (64, 64), {"image_size": 64}, None),
    "wide_resnet": ("wide_resnet50_2", (64, 64), {}, None),
    "deeplabv3": (
        "segmentation.deeplabv3_mobilenet_v3_large",
        (64, 64),
        {"weights_backbone": None},
        _class_map,
    ),
    "fcn": ("segmentation.fcn_resnet50", (64, 64), {"weights_backbone": None}, _class_map),
    "lraspp": ("segmentation.lraspp_mobilenet_v3_large", (64, 64), {"weights_backbone": None}, _class_map),
    "video.resnet3d": ("video.r3d_18", (4, 32, 32), {}, None),
    "video.mc3": ("video.mc3_18", (4, 32, 32), {}, None),
    "video.r2plus1d": ("video.r2plus1d_18", (4, 32, 32), {}, None),
    "video.s3d": ("video.s3d", (16, 224, 224), {}, None),
    "video.mvit_v1": ("video.mvit_v1_b", (16, 224, 224), {}, None),
    "video.mvit_v2": ("video.mvit_v2_s", (16, 224, 224), {}, None),
    "video.swin3d": ("video.swin3d_t", (4, 32, 32), {}, None),
    "optical_flow.raft": ("optical_flow.raft_small", (128, 128), {}, _flow),
    "detection.faster_rcnn": (
        "detection.fasterrcnn_mobilenet_v3_large_320_fpn",
        (96, 96),
        {"weights_backbone": None, "box_score_thresh": 0.0, "min_size": 96, "max_size": 96},
        None,
    ),
    "detection.mask_rcnn": (
        "detection.maskrcnn_resnet50_fpn",
        (96, 96),
        {"weights_backbone": None, "box_score_thresh": 0.0, "min_size": 96, "max_size": 96},
        None,
    ),
    "detection.keypoint_rcnn": (
        "detection.keypointrcnn_resnet50_fpn",
        (96, 96),
        {"weights_backbone": None, "box_score_thresh": 0.0, "min_size": 96, "max_size": 96},
        None,
    ),
    "detection.retinanet": (
        "detection.retinanet_resnet50_fpn",
        (96, 96),
        {"weights_backbone": None, "score_thresh": 0.0, "min_size": 96, "max_size": 96},
        None,
    ),
    "detection.fcos": (
        "detection.fcos_resnet50_fpn",
        (96, 96),
        {"weights_backbone": None, "score_thresh": 0.0, "min_size": 96, "max_size": 96},
        None,
    ),
    "detection.ssd": (
        "detection.ssd300_vgg16",
        (96, 96),
        {"weights_backbone": None, "score_thresh": 0.0},
        None,
    ),
    "detection.ssdlite": (
        "detection.ssdlite320_mobilenet_v3_large",
        (96, 96),
        {"weights_backbone": None, "score_thresh": 0.0},
        None,
    ),
}
"""Family: member, size of the input, options, target."""


def families() -> list[str]:
    return list(ROWS)


def build(family: str) -> Case:
    """One member with random weights."""
    name, size, options, target = ROWS[family]
    make: Any = torchvision.models
    for part in name.split("."):
        make = getattr(make, part)
    model: nn.Module = make(weights=None, **options)
    alive(model)
    large = "." in family
    inputs: Any = torch.randn(1 if large and "video" in family else 2, 3, *size)
    if family.startswith("optical_flow"):
        inputs = (inputs, torch.randn_like(inputs))
    if family.startswith("detection"):
        model = Detector(model)
        inputs = inputs.sigmoid()
    model.eval()
    if not family.startswith("detection"):
        steady(model, lambda: model(*inputs) if isinstance(inputs, tuple) else model(inputs))
    return Case(name, model, inputs, target)
