"""The concrete trace."""
from __future__ import annotations

from typing import Any

from relprop.engine.graph import Graph
from relprop.errors import CaptureError


def trace(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    raise CaptureError("not yet")
