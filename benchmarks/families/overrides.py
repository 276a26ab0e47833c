"""What some transformers families need beside the common table: settings, heads, inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

CONFIGS: dict[str, dict[str, Any] | Callable[[], Any]] = {}
"""Settings by model type, by part of the configuration; or a function that makes the configuration."""

HEADS: dict[str, str] = dict.fromkeys(
    (
        "align",
        "altclip",
        "chinese_clip",
        "clap",
        "clip",
        "metaclip_2",
        "siglip",
        "siglip2",
        "xclip",
        "dinov3_vit",
        "dinov3_convnext",
    ),
    "AutoModel",
)
"""The class that builds a family where that is not the first head of the list."""

INPUTS: dict[str, Callable[[Any], dict[str, Tensor]]] = {}
"""Inputs by model type, from the model."""

SKIPPED: dict[str, str] = {}
"""Model types that are no family of their own, and why."""
