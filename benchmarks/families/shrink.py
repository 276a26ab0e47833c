"""A transformers configuration made small: few layers, small width, few tokens, whatever its keys are called."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

VOCABULARY = 256

_SIZES: dict[int, str] = {
    64: "hidden_size d_model n_embd embed_dim hidden_dim dim encoder_hidden_size decoder_hidden_size intermediate_size ffn_dim"
    " encoder_ffn_dim decoder_ffn_dim d_ff mlp_dim n_inner embedding_size projection_dim out_hidden_size text_hidden_size"
    " emb_dim output_dim embedding_dim proj_dim dense_ff_dim mlp_hidden_size shared_intermediate_size"
    " decoder_intermediate_size word_embed_proj_dim width ffn_hidden_size hidden_size_per_layer_input adapter_hidden_size"
    " text_embed_dim vision_hidden_size audio_hidden_size projector_hidden_size lru_width recurrent_size cross_attention_hidden_size"
    " d_inner attention_hidden_size intermediate_dim fusion_hidden_size neck_hidden_size fpn_hidden_size bottleneck_features"
    " decoder_ffn_hidden_size encoder_hidden_dim encoder_ffn_hidden_size mask_feature_size feature_size conv_dim num_state_channels"
    " codevector_dim classifier_proj_size hidden_size_for_classifier d_latents shared_kv_dim",
    32: "moe_intermediate_size expert_dim shared_expert_intermediate_size q_lora_rank moe_ffn_hidden_size expert_intermediate_size"
    " moe_shared_expert_intermediate_size o_lora_rank index_head_dim laurel_rank expert_ffn_hidden_size num_mel_bins_",
    16: "head_dim global_head_dim attention_head_dim kv_lora_rank qk_head_dim v_head_dim d_kv swa_head_dim swa_v_head_dim d_head head_size"
    " linear_key_head_dim linear_value_head_dim kv_channels linear_head_dim attn_head_dim key_head_dim value_head_dim"
    " mamba_head_dim mamba_d_head qk_channels mamba_d_state state_size ssm_state_size lightning_head_dim"
    " num_conv_pos_embeddings conv_pos_width",
    8: "qk_rope_head_dim qk_nope_head_dim rotary_dim index_topk sliding_window sliding_window_size local_attention attention_window"
    " chunk_size window_length attention_chunk_size chunk_length mamba_chunk_size"
    " relative_attention_num_buckets moe_num_experts_ mamba_n_groups_",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads"
    " num_experts num_local_experts n_routed_experts moe_num_experts num_experts_ linear_num_value_heads mamba_n_heads mamba_num_heads"
    " index_n_heads decoder_num_attention_heads swa_num_attention_heads encoder_num_heads decoder_num_heads num_global_attention_heads"
    " num_self_attention_heads num_cross_attention_heads lightning_num_heads num_conv_pos_embedding_groups num_heads_",
    2: "num_key_value_heads swa_num_key_value_heads num_kv_heads kv_n_heads num_global_key_value_heads linear_num_key_heads num_hidden_layers n_layer n_layers encoder_layers"
    " decoder_layers num_layers num_decoder_layers num_encoder_layers num_experts_per_tok num_experts_per_token moe_topk top_k moe_k depth"
    " decoder_num_hidden_layers encoder_num_hidden_layers num_blocks decoder_depth num_hidden_groups num_block_records text_layers vision_layers"
    " num_self_attends_per_block num_blocks_ decoder_num_layers",
    1: "n_group topk_group n_shared_experts num_groups_ num_nextn_predict_layers first_k_dense_replace mamba_n_groups n_groups_"
    " num_mtp_modules num_dense_layers",
    128: "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx max_seq_len context_length",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
"""The largest size a key may keep."""

_DEPTHS = (
    "depths",
    "num_blocks",
    "layer_depths",
    "encoder_layers",
    "stage_num_blocks",
    "layers",
    "blocks_per_stage",
)
_DERIVED = (
    "transformers_version",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "_name_or_path",
    "architectures",
    "stage_names",
    "per_layer_config",
)
_IDS = ("_token_id", "_token_index", "_id")


def small(config: PretrainedConfig, **given: Any) -> dict[str, Any]:
    """Keywords that make a configuration like `config`, but small; `given` has the last word ("text_config": {…} in
    parts)."""
    old = _settings(config)
    new: dict[str, Any] = {}
    kept = _layers(old)
    staged = any(
        isinstance(old.get(name), (list, tuple)) for name in ("depths", "num_heads", "num_attention_heads")
    )
    spare = iter(range(VOCABULARY - 1, 0, -1))
    for name, value in old.items():
        if isinstance(value, PretrainedConfig):
            own = given.get(name, {})
            kept_values = {k: v for k, v in value.to_dict().items() if k not in _DERIVED}
            new[name] = kept_values | small(value, **(own if isinstance(own, dict) else {}))
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif isinstance(value, int) and name.endswith("vocab_size") and value > VOCABULARY:
            new[name] = VOCABULARY
        elif isinstance(value, int) and name.endswith(_IDS) and value >= VOCABULARY:
            new[name] = next(spare)
        elif name == "eos_token_id" and isinstance(value, (list, tuple)):
            new[name] = 2
        elif staged and name in ("embed_dim", "hidden_size", "hidden_dim"):
            continue  # the width of the first stage, or one that follows from it
        elif isinstance(value, int) and name in SMALL and value > SMALL[name]:
            new[name] = SMALL[name]
        elif isinstance(value, (list, tuple)) and name in kept[1]:
            new[name] = [value[i] for i in kept[0]]
        elif isinstance(value, (list, tuple)) and name in _DEPTHS and all(isinstance(v, int) for v in value):
            new[name] = [min(v, 2) for v in value]
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            new[name] = _rope(value)
    if kept[1]:
        new["num_hidden_layers"] = len(kept[0])
    heads, keys = new.get("num_attention_heads"), old.get("num_key_value_heads")
    if heads and keys is not None and keys == old.get("num_attention_heads"):
        new["num_key_value_heads"] = heads
    if "qk_rope_head_dim" in old and "head_dim" in old:  # the heads that rotate
        new["head_dim"] = new.get("qk_rope_head_dim", old["qk_rope_head_dim"])
    if "head_dim" in old and old["head_dim"] is None and isinstance(heads, int):
        new["head_dim"] = new.get("hidden_size", old.get("hidden_size")) // heads
    new |= _image(old) | _stages(old)
    return new | {
        name: value
        for name, value in given.items()
        if not (isinstance(value, dict) and name in new and isinstance(old.get(name), PretrainedConfig))
    }


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration says, its parts as configurations; of settings that differ from layer to layer the common
    value, which no attribute gives."""
    said = config.to_dict()
    own = {name for layer in (said.pop("per_layer_config", None) or {}).values() for name in layer}
    return {
        name: value if name in own else getattr(config, name)
        for name, value in said.items()
        if name in own or hasattr(config, name)
    }


def _layers(old: dict[str, Any]) -> tuple[list[int], list[str]]:
    """Which layers stay, and the names of the lists with an entry for each layer: one layer of each kind."""
    count = old.get("num_hidden_layers") or old.get("num_layers")
    lists = [
        name
        for name, value in old.items()
        if isinstance(value, (list, tuple))
        and len(value) == count
        and name not in _DEPTHS
        and all(isinstance(v, (str, int, float, type(None))) for v in value)
    ]
    if not lists or not isinstance(count, int) or count < 2:
        return [], []
    seen: dict[Any, int] = {}
    for i in range(count):
        seen.setdefault(tuple(str(old[name][i]) for name in lists), i)
    first = sorted(seen.values())[:4]
    if len(first) == 1:
        first = [0, 1]
    return first, lists


def _stages(old: dict[str, Any]) -> dict[str, Any]:
    """A backbone's last layers as the features that it gives, as many as before."""
    count, given = old.get("num_hidden_layers"), old.get("out_indices")
    if not isinstance(count, int) or not isinstance(given, (list, tuple)) or "depths" in old:
        return {}
    few = max(2, len(given))
    kept = list(range(few - len(given) + 1, few + 1))
    return {
        "num_hidden_layers": few,
        "out_indices": kept,
        "out_features": [f"stage{i}" for i in kept],
        "stage_names": ["stem", *(f"stage{i + 1}" for i in range(few))],
    }


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings whose sections fit heads of 16."""
    new = {k: _rope(v) if isinstance(v, dict) else v for k, v in value.items()}
    if "mrope_section" in new:
        new["mrope_section"] = (
            [4, 2, 2] if len(new["mrope_section"]) == 3 else [2] * len(new["mrope_section"])
        )
    return new


def _image(old: dict[str, Any]) -> dict[str, Any]:
    """An image of four patches a side."""
    size, patch = old.get("image_size"), old.get("patch_size")
    if not isinstance(size, int) or size <= 64:
        return {}
    return {"image_size": 4 * patch if isinstance(patch, int) and patch > 7 else 64}


def smallest(model_type: str, **given: Any) -> PretrainedConfig:
    """The small configuration of a model type."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**small(kind(), **given))
