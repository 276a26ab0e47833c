"""What an explanation holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relprop.engine.audit import Audit
from relprop.engine.plan import Plan


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the model gave this score.

    Attributes:
        relevance: float tensor of the shape of the input it explains; a tuple or dict of them where the model takes
            several inputs. Its sum and what the audit lists add up to the score.
        output: the model's output, detached.
        target: the resolved target: the class of each sample, the index, the weights or the callable.
        score: the explained score f of each sample, (B,).
        audit: where the score went; None for methods that conserve nothing.
        inputs: what was explained, as it was given.
        plan: the rule of every operation; None for methods without rules.
        method: the method's name.
    """

    relevance: Any
    output: Any
    target: Any
    score: Tensor
    audit: Audit | None
    inputs: Any = field(repr=False)
    plan: Plan | None = field(repr=False, default=None)
    method: str = "lrp"
    _at: Callable[[str], Any] | None = field(repr=False, default=None)

    def at(self, path: str) -> Any:
        """Relevance at the output of the module at `path` ("layer3.1"), of its output's shape.

        A module that is called several times gives a tuple in the order of its calls; "relu@1" is the second call
        alone. The relevance is computed when it is first asked for, by another walk over the same inputs.

        Raises:
            InvalidInput: there is no such module, relevance does not pass it, or the model has changed since.
        """
        if self._at is None:
            from relprop.errors import InvalidInput

            raise InvalidInput(f"at: the method {self.method!r} has no relevance inside the model")
        with torch.inference_mode(False):
            return self._at(path)

    def heatmap(self, image: Any = None, **options: Any) -> Any:
        """A picture of the relevance (a PIL image): maps for images, a plot for series; zero is the neutral colour.

        Args:
            image: what the map is laid over; by default the explained input itself where it is an image.
            options: those of `relprop.show.heatmap`: `overlay`, `colours`, `limit`, `title`, …
        """
        from relprop import show

        relevance = self._single()
        if (
            image is None
            and relevance.dim() == 4
            and relevance.shape[1] in (1, 3)
            and isinstance(self.inputs, Tensor)
        ):
            image = self.inputs
        return show.draw(relevance, inputs=image, **options)

    def save(self, file: str | Path, **options: Any) -> Path:
        """Write the heatmap to a file (PNG, JPEG or PDF by its suffix). `options` as for `heatmap`."""
        from relprop import show

        show.save(self.heatmap(**options), file)
        return Path(file)

    def _repr_html_(self) -> str:
        from relprop import show

        lines = [f"target {_short(self.target)}, score {_short(self.score)}"]
        if self.audit is not None:
            lines.append(self.audit.summary())
        return show.html(self.heatmap(), "\n".join(lines))

    def _single(self) -> Tensor:
        if isinstance(self.relevance, Tensor):
            return self.relevance
        parts = list(self.relevance.values()) if isinstance(self.relevance, dict) else list(self.relevance)
        return next(part for part in parts if isinstance(part, Tensor))

    def __str__(self) -> str:
        head = f"{self.method}: target {_short(self.target)}, score {_short(self.score)}"
        return head if self.audit is None else f"{head}\n{self.audit}"


def _short(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() <= 8:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in value.reshape(-1).tolist()]
        return ", ".join(values)
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    return str(value)
