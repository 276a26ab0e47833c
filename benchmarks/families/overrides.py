"""What some transformers families need beside the common table: settings, heads, inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_WIDE = {"encoder_hidden_dim": 256, "d_model": 256, "hidden_dim": 256, "num_queries": 20}
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_HEADS = {"decoder_attention_heads": 8, "encoder_attention_heads": 8, "head_dim": 32}
_SWIN = {"image_size": 224}

CONFIGS: dict[str, dict[str, Any] | Callable[[], Any]] = {
    "xclip": {"projection_dim": 64, "vision_config": {"mit_hidden_size": 64}},
    "depth_pro": {"patch_size": 16, "intermediate_hook_ids": [1, 0]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "rf_detr": {"num_queries": 4, "group_detr": 1},
    "timm_backbone": {"backbone": "resnet18"},
    "levit": {"image_size": 224},  # smaller ones leave its last batch normalisations one place
    "siglip2": {"text_config": {"projection_size": 64}},
    "siglip": {"text_config": {"projection_size": 64}},
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "pp_doclayout_v4": {"hidden_size": 256, "encoder_hidden_dim": 256, "num_queries": 20},
    "nemotron_h": {"mamba_num_heads": 8, "n_groups": 2, "mamba_head_dim": 16},
    "nemo_speechlm": {"audio_config": {"chunk_right_context": 2}},
    "mpnet": {"relative_attention_num_buckets": 32},
    "mistral4": {"head_dim": 16, "qk_head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 64}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "dory": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "blip-2": {"qformer_config": {"use_qformer_text_input": True}},
    "align": {"projection_dim": 640},
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_experts": 4, "num_experts_per_tok": 2},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "chmv2": {"backbone_config": {"num_hidden_layers": 24}},
    "d_fine": _WIDE | _HEADS,
    "deepseek_v2": _ROUTED,
    "deimv2": _WIDE | _HEADS,
    "depth_anything": {"reassemble_hidden_size": 64},
    "donut-swin": _SWIN,
    "dots1": _ROUTED,
    "dpt": {"num_hidden_layers": 12},
    "efficientnet": {"hidden_dim": 2560},
    "esm": {"vocab_size": 64, "mask_token_id": 3, "pad_token_id": 1},
    "gemma3": {"mm_tokens_per_image": 4},
    "granitemoehybrid": _MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi_linear": {"num_expert_group": 1, "topk_group": 1, "n_group": 1},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "input_size": 64},
    "lilt": {"hidden_size": 96},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "maskformer-swin": _SWIN,
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {
        "max_position_embeddings": 12,
        "num_latents": 8,
        "qk_channels": 32,
        "v_channels": 64,
    },
    "pp_doclayout_v2": _WIDE | {"class_thresholds": [0.5] * 20, "class_order": list(range(20))},
    "pp_doclayout_v3": _WIDE,
    "prompt_depth_anything": {"reassemble_hidden_size": 64},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [16, 8],
        "attn_layers": ["local", "local"],
    },
    "rt_detr": _WIDE,
    "rt_detr_v2": _WIDE,
    "shieldgemma2": {"mm_tokens_per_image": 4, "yes_token_index": 5, "no_token_index": 6},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "tipsv2_dpt": {"backbone_config": {"num_hidden_layers": 12}},
    "wav2vec2-bert": {"vocab_size": 64},
    "wav2vec2-conformer": {"vocab_size": 64},
    "xlstm": {"chunk_size": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zoedepth": {"backbone_config": {"num_hidden_layers": 24}},
}
"""Settings by model type, by part of the configuration; or a function that makes the configuration."""

_PAIRS = ("align", "altclip", "chinese_clip", "clap", "clip", "metaclip_2", "siglip", "siglip2", "xclip")

HEADS: dict[str, str] = {
    **dict.fromkeys(_PAIRS, "AutoModel"),  # the similarity of an image (or a sound) and a text
    "blip-2": "Blip2ForImageTextRetrieval",
    "musicgen": "MusicgenForConditionalGeneration",
    "perceiver": "PerceiverForMaskedLM",
}
"""The class that builds a family where that is not the first head of the list."""


def _text(model: Any) -> dict[str, Tensor]:
    tokens = torch.randint(5, 200, (2, 12))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _sound(model: Any) -> dict[str, Tensor]:
    return _text(model) | {
        "input_features": torch.randn(2, 1, 1001, 64),
        "is_longer": torch.zeros(2, 1, dtype=torch.bool),
    }


def _patches(model: Any) -> dict[str, Tensor]:
    config = model.config.vision_config
    size = config.num_channels * config.patch_size**2
    return _text(model) | {
        "pixel_values": torch.randn(2, 16, size),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    }


def _feature_frames(width: int) -> Callable[[Any], dict[str, Tensor]]:
    def inputs(model: Any) -> dict[str, Tensor]:
        return {
            "input_features": torch.randn(2, 32, width),
            "decoder_input_ids": torch.randint(5, 60, (2, 6)),
        }

    return inputs


INPUTS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "clap": _sound,
    "gemma3": _text,
    "got_ocr2": _text,
    "granite_speech5_ctc": lambda model: {"input_features": torch.randn(2, 64, 320)},
    "modernvbert": _text,
    "omniasr_ctc": lambda model: {"input_values": torch.randn(2, 1, 4000)},
    "perceiver": lambda model: {"inputs": torch.randint(5, 200, (2, 12))},
    "seamless_m4t": _feature_frames(160),
    "seamless_m4t_v2": _feature_frames(160),
    "shieldgemma2": _text,
    "siglip2": _patches,
    "speech-encoder-decoder": lambda model: {
        "inputs": torch.randn(2, 4000),
        "decoder_input_ids": torch.randint(5, 200, (2, 6)),
    },
    "t5gemma2": lambda model: _text(model) | {"decoder_input_ids": torch.randint(5, 200, (2, 6))},
    "ultravbert": _text,
    "gemma3n": _text,
    "gemma4": _text,
    "gemma4_unified": _text,
    "neomme": _text,
    "kyutai_speech_to_text": lambda model: {"input_ids": torch.randint(5, 200, (2, 12, 33))},
    "voxtral_realtime": lambda model: _text(model) | {"input_features": torch.randn(2, 128, 96)},
    "wav2vec2-bert": lambda model: {"input_features": torch.randn(2, 32, 160)},
    "xclip": lambda model: _text(model) | {"pixel_values": torch.randn(2, 8, 3, 128, 128)},
    "videoprism": lambda model: _text(model) | {"pixel_values_videos": torch.randn(2, 16, 3, 64, 64)},
}
"""Inputs by model type, from the model."""

SKIPPED: dict[str, str] = {}
"""Model types that are no family of their own, and why."""
