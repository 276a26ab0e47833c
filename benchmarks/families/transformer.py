"""transformers: every text, vision and audio family with a head, from a small configuration of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
import transformers.masking_utils  # every family imports it and modeling_utils: once, before the fork
import transformers.modeling_utils
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from families import Case, alive, steady
from families.overrides import CONFIGS, HEADS, INPUTS, SKIPPED
from families.shrink import VOCABULARY, smallest

logging.set_verbosity(50)

KINDS = {
    "SPEECH_SEQ_2_SEQ": "AutoModelForSpeechSeq2Seq",
    "SEQ_TO_SEQ_CAUSAL_LM": "AutoModelForSeq2SeqLM",
    "MASKED_LM": "AutoModelForMaskedLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
    "IMAGE_CLASSIFICATION": "AutoModelForImageClassification",
    "CTC": "AutoModelForCTC",
    "AUDIO_CLASSIFICATION": "AutoModelForAudioClassification",
    "VIDEO_CLASSIFICATION": "AutoModelForVideoClassification",
    "SEMANTIC_SEGMENTATION": "AutoModelForSemanticSegmentation",
    "OBJECT_DETECTION": "AutoModelForObjectDetection",
    "DEPTH_ESTIMATION": "AutoModelForDepthEstimation",
    "ZERO_SHOT_IMAGE_CLASSIFICATION": "AutoModelForZeroShotImageClassification",
    "BACKBONE": "AutoBackbone",
}
"""Heads, in order of preference, with the class that builds them."""

TOKENS, STEPS = 12, 6


def families() -> list[str]:
    """All model types with one of these heads, and those that are asked for by name."""
    return sorted({*heads(), *HEADS} - set(SKIPPED))


def heads() -> dict[str, str]:
    """From the model type to the class that builds it."""
    found: dict[str, str] = {}
    for kind, name in KINDS.items():
        for model_type in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES"):
            found.setdefault(model_type, name)
    return found


def build(family: str) -> Case:
    """The family's small member with random weights, inputs for it and a target."""
    head = HEADS.get(family) or heads()[family]
    given = CONFIGS.get(family, {})
    config = given() if callable(given) else smallest(family, **given)
    config.architectures = config.architectures or []
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))):
        part.use_cache = False  # some cannot make the cache that no one asks for here
    kind = getattr(transformers, head)
    model: nn.Module = kind.from_config(config) if head.startswith("Auto") else kind(config)
    model.eval()
    alive(model)
    for weight in model.parameters():  # as large as those of a trained network
        if weight.dim() > 1 and weight.is_floating_point() and 0 < float(weight.detach().std()) < 0.03:
            weight.data.mul_(4)
    inputs, hidden = inputs_of(family, model)
    features = inputs.get("input_features")
    if features is not None and features.dim() == 3 and family not in INPUTS and not _runs(model, inputs):
        inputs["input_features"] = features.mT.contiguous()  # steps first, where the other order does not run
    steady(model, lambda: model(**inputs))
    with torch.no_grad():
        target = target_of(model(**inputs), hidden)
    return Case(type(model).__name__, model, inputs, target, hidden)


def _runs(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception:
        return False
    return True


def vocabulary(model: Any) -> int:
    """How many tokens the model knows, less those that could mean something else."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    size = getattr(table, "num_embeddings", VOCABULARY)
    return min(size, VOCABULARY) - (56 if size >= VOCABULARY else 2)


def inputs_of(family: str, model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random inputs by the names in the signature of `forward`, and where masks hide tokens."""
    names = list(inspect.signature(model.forward).parameters)
    own: Callable[[Any], dict[str, Tensor]] | None = INPUTS.get(family)
    if own is not None:
        return own(model), {}
    main, config = model.main_input_name, model.config
    inputs: dict[str, Tensor] = {}
    hidden: dict[str, Tensor] = {}
    if main == "input_ids" or ("pixel_values" in names and "input_ids" in names):
        inputs["input_ids"] = torch.randint(5, vocabulary(model), (2, TOKENS))
        if "attention_mask" in names:
            mask = torch.ones(2, TOKENS, dtype=torch.long)
            left = "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__
            mask[1, :3] = 0 if left else 1
            mask[1, -3:] = 1 if left else 0
            inputs["attention_mask"] = mask
            hidden["input_ids"] = mask == 0
    if main != "input_ids":
        video = main == "pixel_values" and any(hasattr(config, n) for n in ("num_frames", "tubelet_size"))
        make = _frames if video else SHAPES.get(main, lambda config: torch.randn(2, 64, 64))
        inputs[main] = make(config)
    elif "pixel_values" in names and "Causal" not in type(model).__name__:
        inputs["pixel_values"] = pixels(config)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = torch.randint(5, vocabulary(model), (2, STEPS))
    if "bbox" in names:
        corner = torch.randint(0, 60, (2, TOKENS, 2))
        inputs["bbox"] = torch.cat([corner, corner + torch.randint(1, 30, (2, TOKENS, 2))], -1)
    return inputs, hidden


def pixels(config: Any) -> Tensor:
    """Two images of the configured size."""
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(2, getattr(config, "num_channels", 3), height, width)


def _frames(config: Any) -> Tensor:
    frames = getattr(config, "num_frames", getattr(config, "frames_per_clip", 8))
    return pixels(config).unsqueeze(1).repeat(1, frames, 1, 1, 1) + torch.randn(2, frames, 1, 1, 1)


def _features(config: Any) -> Tensor:
    bins = next(
        (
            getattr(config, n)
            for n in ("num_mel_bins", "input_feat_per_channel", "feature_size", "n_mels")
            if hasattr(config, n)
        ),
        80,
    )
    return torch.randn(2, bins, 2 * getattr(config, "max_source_positions", 64))


def _speech(config: Any) -> Tensor:
    bins = getattr(config, "num_mel_bins", None)
    if bins and hasattr(config, "max_length"):
        return torch.randn(2, config.max_length, bins)
    return torch.randn(2, 4000)


SHAPES: dict[str, Callable[[Any], Tensor]] = {
    "pixel_values": pixels,
    "pixel_values_videos": _frames,
    "input_values": _speech,
    "input_features": _features,
}
"""From the name of a model's main input to how it is made."""


def target_of(output: Any, hidden: dict[str, Tensor]) -> Any:
    """What is explained: a token (the next one, or one that no mask hides), the largest class, else the first channel of
    a value, averaged."""
    logits = output.get("logits") if hasattr(output, "get") else None
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return None
    if isinstance(logits, Tensor) and logits.dim() == 3:
        last = not any(bool(mask[:, -1].any()) for mask in hidden.values())
        return (-1 if last else 3, 5 % logits.shape[2])
    name = next((n for n in WANTED if isinstance(_first(output.get(n)), Tensor)), None)
    if name is None:
        raise ValueError(f"an output of {', '.join(output)} has nothing to explain")
    if name.startswith("logits_per"):  # the similarity of the sample's own two parts
        return lambda y: y.get(name).diagonal()
    return lambda y: _first(y.get(name)).select(1, 0).unsqueeze(1).flatten(1).mean(1)


def _first(value: Any) -> Any:
    return value[-1] if isinstance(value, (list, tuple)) and value else value


WANTED = (
    "logits",
    "predicted_depth",
    "logits_per_image",
    "logits_per_video",
    "logits_per_audio",
    "pred_boxes",
    "feature_maps",
    "last_hidden_state",
    "pooler_output",
)
"""Parts of an output that are explained where there are no logits."""
