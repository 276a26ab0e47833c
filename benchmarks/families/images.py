"""timm: one member of each family, the smallest there is or a small one that is typical."""

from __future__ import annotations

from typing import Any

import timm
import torch

from families import Case, alive, steady

ROWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 224, {}),
    "byoanet": ("halonet_h1", 256, {}),
    "byobnet": ("gernet_s", 64, {}),
    "cait": ("cait_xxs24_224", 224, {}),
    "coat": ("coat_tiny", 224, {}),
    "convit": ("convit_tiny", 224, {}),
    "convmixer": ("convmixer_768_32", 64, {}),
    "convnext": ("convnext_atto", 64, {}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 64, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "davit": ("davit_tiny", 64, {}),
    "deepseek_vit": ("deepseek_vit_412m", 126, {}),
    "deit": ("deit_tiny_patch16_224", 224, {}),
    "densenet": ("densenet121", 64, {}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "efficientnet": ("efficientnet_lite0", 64, {}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 256, {}),
    "fasternet": ("fasternet_t0", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "gemma4_vit": ("gemma4_vit_167m", 96, {}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 224, {}),
    "hieradet_sam2": ("sam2_hiera_tiny", 224, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "iformer": ("iformer_t", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 96, {}),
    "inception_v3": ("inception_v3", 96, {}),
    "inception_v4": ("inception_v4", 96, {}),
    "lcnetv2": ("lcnetv2_small", 64, {}),
    "levit": ("levit_128s", 224, {}),
    "lowformer": ("lowformer_b0", 64, {}),
    "mambaout": ("mambaout_femto", 64, {}),
    "maxxvit": ("test_coatnet", 160, {}),
    "metaformer": ("poolformerv2_s12", 64, {}),
    "mlp_mixer": ("gmixer_12_224", 224, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 224, {}),
    "naflexvit": ("naflexvit_base_patch16_gap", 64, {}),
    "nasnet": ("nasnetalarge", 64, {}),
    "nest": ("nest_tiny", 224, {}),
    "nextvit": ("nextvit_small", 64, {}),
    "nfnet": ("nf_regnet_b0", 64, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pnasnet": ("pnasnet5large", 64, {}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "qwen3_vit": ("qwen3_vit_88m", 64, {}),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnetx_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {}),
    "res2net": ("res2net50_14w_8s", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "resnet": ("resnet10t", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42", 64, {}),
    "senet": ("legacy_seresnet18", 64, {}),
    "sequencer": ("sequencer2d_s", 224, {}),
    "shvit": ("shvit_s1", 64, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s1", 64, {}),
    "swiftformer": ("swiftformer_xs", 224, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 224, {}),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", 256, {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 224, {}),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "tnt": ("tnt_s_legacy_patch16_224", 224, {}),
    "tresnet": ("tresnet_m", 64, {}),
    "twins": ("twins_svt_small", 224, {}),
    "vgg": ("vgg11", 64, {}),
    "visformer": ("visformer_tiny", 224, {}),
    "vision_transformer": ("vit_tiny_patch16_224", 224, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 224, {}),
    "vision_transformer_relpos": ("test_vit_relpos", 160, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 224, {}),
    "vitamin": ("vitamin_small_224", 224, {}),
    "volo": ("volo_d1_224", 224, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 64, {}),
    "xception_aligned": ("xception41p", 64, {}),
    "xcit": ("xcit_nano_12_p8_224", 224, {}),
}
"""Family: member, size of the image, options that make it smaller."""


def families() -> list[str]:
    """Every module of timm that has models; one that the table does not know yet is taken as it comes."""
    return list(timm.list_modules())


def build(family: str) -> Case:
    """One member with random weights."""
    name, size, options = ROWS.get(family) or (timm.list_models(module=family)[0], 224, {})
    model = timm.create_model(name, pretrained=False, **options).eval()
    alive(model)
    inputs = torch.randn(2, 3, size, size)
    steady(model, lambda: model(inputs))
    return Case(name, model, inputs, None)
