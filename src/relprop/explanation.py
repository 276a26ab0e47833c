"""What an explanation holds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.engine.audit import Audit
from relprop.engine.plan import Plan
from relprop.errors import InvalidInput
from relprop.text import Token, Tokenised, named
from relprop.text.read import ids_of

if TYPE_CHECKING:
    from relprop.explain.again import Inside
    from relprop.inside.ranking import Ranking, Unit
    from relprop.inside.weights import Parameters

SHOWN = 12
"""The most samples that a notebook shows of an explanation: pictures of thousands take minutes and megabytes."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """Why the model gave this score.

    It can be pickled and copied (`torch.save`, `copy.deepcopy`, other processes). What is pickled holds all fields but not
    the model: `at`, `channels`, `parameters` and their like then ask to explain again.

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
        text: the tokens of the explained texts and their places; None where the inputs are no text.
        standard_error: of relevance that was sampled, in its form; None for methods that do not sample.
        features: of a table, the names of its columns, or a range of their numbers; None where the inputs are no table.
    """

    relevance: Any
    output: Any
    target: Any
    score: Tensor
    audit: Audit | None
    inputs: Any = field(repr=False)
    plan: Plan | None = field(repr=False, default=None)
    method: str = "lrp"
    _at: Inside | None = field(repr=False, default=None)
    text: Tokenised | None = field(repr=False, default=None)
    standard_error: Any = field(repr=False, default=None)
    features: Sequence[Any] | None = field(repr=False, default=None)

    @property
    def tokens(self) -> list[list[Token]]:
        """For each text its tokens (text, start, end, relevance), with positions in characters, without padding.

        Special tokens have their name and stand for no characters (start = end). Token ids without a tokenizer
        are called by their numbers. Raises `InvalidInput` where the inputs are no text.
        """
        text = self._text()
        if text is None:
            raise InvalidInput(
                "tokens: the explained inputs are no text\n  do: explain strings, or token ids (B, T), with tokenizer=…"
            )
        return text.tokens(self.relevance)

    def _text(self) -> Tokenised | None:
        if self.text is not None:
            return self.text
        return None if ids_of(self.inputs) is None else named(self.inputs)

    def at(self, path: str) -> Any:
        """Relevance at the output of the module at `path` ("layer3.1"), of its output's shape.

        A module that is called several times gives a tuple in the order of its calls; "relu@1" is the second call
        alone. The relevance is computed when it is first asked for, by another walk over the same inputs.

        Raises:
            InvalidInput: there is no such module, relevance does not pass it, or the model has changed since.
        """
        with torch.inference_mode(False):
            return self._walked("at", path)(path)

    def channels(self, path: str, k: int | None = None, *, normalise: bool = False) -> Ranking:
        """The channels of the module at `path` (dimension 1 of its output) by relevance, the k first ones.

        R_c = Σ R over all positions of channel c, per sample, sorted from the largest to the smallest; `normalise`d by
        Σ_c |R_c|. Raises `InvalidInput` as `at` does.
        """
        return self._ranked(path, "channels", k, normalise)

    def neurons(self, path: str, k: int | None = None, *, normalise: bool = False) -> Ranking:
        """The neurons of a module (the last dimension of its output) by relevance. See `channels`."""
        return self._ranked(path, "neurons", k, normalise)

    def heads(self, path: str, k: int | None = None, *, normalise: bool = False) -> Ranking:
        """The heads of the attention that is computed in the module at `path`, by the relevance of what each gives out
        before the output projection. See `channels`."""
        return self._ranked(path, "heads", k, normalise)

    def parameters(self, *, per_sample: bool = False) -> Parameters:
        """The relevance of the model's parameters, weight by weight: what passes through each on its way to the inputs.

        From a parameter's path to a tensor of its shape, summed over the samples, or with a first dimension for them.
        Computed by another walk over the same inputs. Raises `InvalidInput` as `at` does.
        """
        from relprop.inside import parameters

        with torch.inference_mode(False):
            return parameters(self._walked("parameters", ""), per_sample)

    def _ranked(self, path: str, unit: Unit, k: int | None, normalise: bool) -> Ranking:
        from relprop.inside import ranked

        with torch.inference_mode(False):
            return ranked(self._walked(unit, path), path, unit, k, normalise)

    def _walked(self, what: str, path: str) -> Inside:
        if not isinstance(path, str):
            raise InvalidInput(
                f"{what}: {type(path).__name__} is no path of a module\n"
                '  do: give its name as model.named_modules() has it, such as "layer3.1"'
            )
        if self._at is None and self.method == "lrp":
            raise InvalidInput(
                f"{what}: this explanation was saved or sent to another process, and has left its model behind\n"
                "  do: explain again, or ask for what is inside before it is saved"
            )
        if self._at is None:
            raise InvalidInput(
                f"{what}: the method {self.method!r} has no relevance inside the model\n  do: use method='lrp'"
            )
        return self._at

    def heatmap(self, image: Any = None, **options: Any) -> Any:
        """A picture of the relevance (a PIL image): maps for images, coloured text, a plot for series, bars for the
        columns of a table; zero is the neutral colour.

        Args:
            image: what the map is laid over; by default the explained input itself where it is an image.
            options: those of `relprop.show.heatmap`: `overlay`, `colours`, `limit`, `title`, …
        """
        from relprop import show

        if image is None and (text := self._text()) is not None:
            colours = {name: options.pop(name) for name in ("colours", "size") if name in options}
            texts = show.coloured(text.tokens(self.relevance), text.texts, **options)
            return show.text_picture(texts, **colours)
        relevance = self._single()
        if image is None and self.features is not None and "kind" not in options:
            return show.features(relevance, self.features, self.inputs, **options)
        if (
            image is None
            and relevance.dim() == 4
            and relevance.shape[1] in (1, 3)
            and isinstance(self.inputs, Tensor)
        ):
            image = self.inputs
        return show.draw(relevance, inputs=image, **options)

    def save(self, file: str | Path, **options: Any) -> Path:
        """Write the heatmap to a file (PNG, JPEG or PDF by its suffix; .html: as a page). `options` as for `heatmap`."""
        from relprop import show

        if Path(file).suffix.lower() == ".html":
            return show.save_page(self._html(**options), file)
        return show.save(self.heatmap(**options), file)

    def _repr_html_(self) -> str:
        return self._html(SHOWN)

    def _html(self, most: int | None = None, **options: Any) -> str:
        """A figure of the first `most` samples, by default of all."""
        from relprop import show

        lines = [f"target {_short(self.target)}, score {_short(self.score)}"]
        if most is not None and self.score.numel() > most:
            lines.append(
                f"shown: the first {most} of {self.score.numel():,}; explanation.save(file) draws all"
            )
        if self.audit is not None:
            lines += ["the account of the first one:"] if self.score.numel() > 1 else []
            lines.append(self.audit.summary())
        if (text := self._text()) is not None:
            colours = {"colours": options.pop("colours")} if "colours" in options else {}
            texts = show.coloured(text.tokens(self.relevance)[:most], text.texts[:most], **options)
            return show.text_html(texts, "\n".join(lines), **colours)
        return show.html(self._first(most).heatmap(**options), "\n".join(lines))

    def _first(self, most: int | None) -> Explanation:
        """What is drawn of the first samples; sparse relevance is left whole."""
        relevance = self._single()
        if most is None or len(relevance) <= most or relevance.layout is not torch.strided:
            return self
        inputs = self.inputs if isinstance(self.inputs, (tuple, dict)) else self.inputs[:most]
        return replace(self, relevance=relevance[:most], inputs=inputs)

    def _single(self) -> Tensor:
        if isinstance(self.relevance, Tensor):
            return self.relevance
        parts = list(self.relevance.values()) if isinstance(self.relevance, dict) else list(self.relevance)
        return next(part for part in parts if isinstance(part, Tensor))

    def __repr__(self) -> str:
        closes = (
            "" if self.audit is None else f", audit {'closes' if self.audit.closes else 'does not close'}"
        )
        head = f"{self.method}, relevance {_shapes(self.relevance)}"
        return f"<Explanation: {head}, target {_short(self.target)}, score {_short(self.score)}{closes}>"

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return _restored, (kept | {"_at": None},)

    def __copy__(self) -> Explanation:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explanation:
        kept = {f.name: copy.deepcopy(getattr(self, f.name), memo) for f in fields(self) if f.name != "_at"}
        return Explanation(**kept, _at=self._at)

    def __str__(self) -> str:
        head = f"{self.method}: target {_short(self.target)}, score {_short(self.score)}"
        return head if self.audit is None else f"{head}\n{self.audit}"


def _restored(kept: dict[str, Any]) -> Explanation:
    """What was pickled."""
    return Explanation(**kept)


def _shapes(value: Any) -> str:
    """The shapes of relevance in a few characters."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_shapes(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_shapes, value))})"
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _short(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() <= 8:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in value.reshape(-1).tolist()]
        return ", ".join(values)
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    return str(value)
