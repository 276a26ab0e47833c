"""timm's convolutional families are explained, and their account closes. One small random member each."""

from __future__ import annotations

import pytest
import torch

import relprop

timm = pytest.importorskip("timm", reason="timm is not installed")

SIZES = {
    "gernet_s": 64, "repvgg_a0": 64, "eca_resnext26ts": 64, "convmixer_768_32": 32, "convnext_atto": 64, "convnextv2_atto": 64,
    "cspresnet50": 64, "darknet53": 64, "densenet121": 64, "dla34": 64, "dpn48b": 64, "edgenext_xx_small": 64,
    "efficientnet_lite0": 64, "tf_efficientnetv2_b0": 64, "mixnet_s": 64, "fasternet_t0": 64, "fastvit_t8": 64,
    "focalnet_tiny_srf": 64, "ghostnet_050": 64, "hardcorenas_a": 64, "hgnetv2_b0": 64, "hrnet_w18_small": 64,
    "inception_next_atto": 64, "inception_v4": 96, "lcnet_050": 64, "mambaout_femto": 64, "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small": 64, "dm_nfnet_f0": 64, "nf_regnet_b0": 64, "rdnet_tiny": 64, "regnety_002": 64,
    "repghostnet_050": 64, "res2net50_14w_8s": 64, "resnest14d": 64, "resnet10t": 64, "resnetv2_50": 64, "rexnet_100": 64,
    "selecsls42": 64, "legacy_seresnet18": 64, "skresnet18": 64, "starnet_s1": 64, "tresnet_m": 64, "ese_vovnet19b_dw": 64,
    "legacy_xception": 96, "poolformer_s12": 64, "mobilenetv2_035": 64, "lambda_resnet26t": 256,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_account_closes_for_convolutional_families(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    inputs = torch.randn(1, 3, SIZES[name], SIZES[name])
    explanation = relprop.explain(model, inputs)
    assert explanation.audit is not None and explanation.audit.closes
    assert torch.isfinite(explanation.relevance).all()
