"""Estimators as what is explained: a network that computes their score, and the way back to what the caller gave."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.classical.build import Place, Score, check_fitted, is_estimator, network, opened, predict, refuse
from relprop.classical.explained import labels, nonzeros
from relprop.classical.explained.inputs import Given, Reader
from relprop.classical.steps import Centre, Dense, Network
from relprop.engine.audit import Audit, Entry
from relprop.engine.plan import Composite
from relprop.engine.presets import named
from relprop.engine.rules import Addition, Epsilon, LinearRule, Rule
from relprop.errors import CaptureError, InvalidInput
from relprop.explanation import Explanation
from relprop.text.tokens import Tokenised

CHECKED = 8
"""Rows whose score is compared with the estimator's own, at each call."""

_EXACT = (("addition", Addition(epsilon=0.0)), ("pool", Epsilon(0.0)))

RULES = Composite(
    (("weighted", Epsilon(0.0)), *_EXACT),
    name="classical",
    about="classical models: LRP-0, so that linear models give weight × (input − reference)",
)
"""What "auto" means for a classical model: no stabiliser anywhere. Perceptrons have the rules of the preset "auto"."""


@dataclass(frozen=True, eq=False)
class Estimator:
    """A fitted estimator with the network that computes its score.

    Attributes:
        fitted: the estimator or pipeline; it is read and never written.
        network: the network.
        score: what its scores mean.
        reader: how its inputs are read.
    """

    fitted: Any
    network: Network
    score: Score
    reader: Reader

    def composite(self, rules: Any, meant: Callable[[Any], Composite]) -> Composite:
        """The composite of `rules` ("auto", a preset, a rule, a composite) for a classical model."""
        if rules == "auto":
            deep = any(isinstance(module, Dense) for module in self.network.modules())
            return Composite((*named("auto").rules, *_EXACT), name="auto") if deep else RULES
        if isinstance(rules, Rule):
            return Composite((("weighted", rules), *_EXACT), name=type(rules).__name__)
        found = meant(rules)
        return Composite((*found.rules, *_EXACT), found.fold, found.name, found.about)

    def target(self, target: Any, batch: int) -> Any:
        """The target in the network's outputs: labels become indices, of one output its sign.

        Raises `InvalidInput` for what is no label and no index of an output.
        """
        return labels.resolved(target, self.score, self.reader.place.width, batch)

    def read(self, inputs: Any, composite: Composite) -> Given:
        """What the network takes. Raises `InvalidInput` for what the estimator was not fitted for."""
        absorbs = all(
            not isinstance(rule, LinearRule) or rule.bias == "absorb" for _, rule in composite.rules
        )
        return self.reader.read(inputs, self.network.sparse, absorbs)

    def own(self, given: Given) -> Any:
        """The estimator's own score of the first samples. Raises `InvalidInput` where it refuses them."""
        try:
            with warnings.catch_warnings(
                action="ignore", category=UserWarning
            ):  # of names, which `read` has checked
                return np.asarray(self.score.own(given.first(CHECKED)), dtype=np.float64)
        except (ValueError, TypeError) as error:
            reason = str(error).split("\n")[0][:200]
            raise InvalidInput(
                f"inputs: {self.reader.name} refuses them: {reason}\n  do: give what it was fitted on"
            ) from error

    def check(self, own: Any, output: Tensor) -> None:
        """Raise `CaptureError` where the network's scores are not the estimator's own."""
        found = output[: len(own)].double().cpu().numpy()
        if self.score.kind == "logits":
            own, found = own - own.mean(1, keepdims=True), found - found.mean(1, keepdims=True)
        safe = np.isfinite(own)
        scale = max(1.0, float(np.abs(own[safe]).max())) if safe.any() else 1.0
        if own.shape != found.shape or not np.allclose(own[safe], found[safe], rtol=1e-5, atol=1e-5 * scale):
            raise CaptureError(
                f"model: the network of {type(self.fitted).__name__} does not compute its score: its class computes"
                " it in a way of its own\n  do: add a function for the class to relprop.classical.ESTIMATORS"
            )

    def finished(self, explanation: Explanation, given: Given, target: Any) -> Explanation:
        """The explanation in the form of what the caller gave; `target`: as `target()` resolved it."""
        relevance, audit, text = explanation.relevance, explanation.audit, None
        if given.sparse is not None:
            listed = given.dense is None
            table = nonzeros.with_data(given.sparse, relevance) if listed else nonzeros.sparse_of(relevance)
            if given.text is not None:
                relevance, absent = given.text.of_words(table)
                audit = None if audit is None else _of_words(audit, relevance.sum(1), absent)
                text = Tokenised(given.text.texts, given.text.pieces, list(given.text.texts))
            else:
                relevance = nonzeros.csr_tensor(table)
        resolved = explanation.target
        if labels.one_output(self.score) and (target is None or isinstance(target, Tensor)):
            signs = torch.ones(given.batch) if target is None else target
            resolved = (signs > 0).long()
        return dataclasses.replace(
            explanation,
            relevance=relevance,
            audit=audit,
            inputs=given.inputs,
            text=text,
            target=resolved,
            features=given.features,
        )


def _of_words(audit: Audit, words: Tensor, absent: Tensor) -> Audit:
    """The account of words: what terms have that are not in the text is absorbed as "absent"."""
    lacking = {"absent": absent} if bool(absent.any()) else {}
    entry = Entry("words", "words", "", "", "by occurrence", audit.relevance, words, lacking)
    return dataclasses.replace(
        audit, relevance=words, absorbed={**audit.absorbed, **lacking}, entries=(*audit.entries, entry)
    )


def listed_once(explanation: Explanation, rows: Any) -> Explanation:
    """An explanation of listed nonzeros with its relevance one after the other, (N,), of the CSR array `rows`."""
    errors = explanation.standard_error
    return dataclasses.replace(
        explanation,
        relevance=nonzeros.unlisted(rows, explanation.relevance[0]),
        standard_error=None if errors is None else nonzeros.unlisted(rows, errors[0]),
    )


def rewritten(fitted: Any, reference: Any = None, **options: Any) -> Estimator:
    """The estimator with its network.

    Raises:
        UnsupportedEstimator: it, or a step of it, has no rewriting.
        InvalidInput: it is not fitted, or an option is none of its own.
    """
    if not is_estimator(fitted):
        raise refuse(fitted, "is no estimator", "give a fitted estimator or pipeline of scikit-learn")
    check_fitted(fitted)
    place = Place(0, options={name: value for name, value in options.items() if value is not None})
    first = _first(fitted)
    texts = place.text = first is not None and hasattr(first, "build_analyzer")
    width = None if texts else _width(fitted)
    place.images = getattr(first, "image_shape_", None)
    if width is None and place.images is None and not texts:
        raise refuse(
            first,
            "does not say how many features it takes",
            "explain the steps behind it, model[1:], on what it gives: model[:1].transform(X)",
        )
    place.width = int(width or 0)
    place.raw = tuple(range(place.width))
    if reference is not None:
        _refer(place, reference, texts)
    score = predict(fitted, place)
    if place.options.keys() - {"precomputed"}:
        raise InvalidInput(
            f"{', '.join(sorted(place.options))}: no option of {type(fitted).__name__}\n  do: leave it out"
        )
    if place.words:
        width = sum(columns for _, columns in place.words)
    names = getattr(fitted, "feature_names_in_", None)
    reader = Reader(type(fitted).__name__, place, width, None if names is None else tuple(names), texts)
    return Estimator(fitted, network(place), score, reader)


def _refer(place: Place, reference: Any, texts: bool) -> None:
    """Count from the caller's reference."""
    if texts or place.images is not None:
        raise InvalidInput(
            f"reference: a model of {'texts' if texts else 'images'} takes none\n  do: leave it out"
        )
    values = np.asarray(reference.detach().cpu() if isinstance(reference, Tensor) else reference)
    numbers = values.dtype.kind in "fiub"
    if not numbers or values.shape not in ((), (place.width,)) or not np.isfinite(values).all():
        raise InvalidInput(
            f"reference: {values.dtype} of shape {values.shape}, and the model takes {place.width} features\n"
            "  do: give one finite value, or one a feature"
        )
    place.reference = torch.from_numpy(np.array(np.broadcast_to(values, (place.width,)), dtype=np.float64))
    place.fixed = True
    if bool(place.reference.any()):
        place.steps.append(Centre(reference=place.reference))


def _first(fitted: Any) -> Any:
    """The first step of a model: what meets the input."""
    while True:
        fitted = opened(fitted)
        steps = getattr(fitted, "steps", None) or getattr(fitted, "transformer_list", None)
        if not steps or not isinstance(steps, list):
            return fitted
        fitted = next((step for _, step in steps if step not in (None, "passthrough", "drop")), None)


def _width(fitted: Any) -> int | None:
    """The number of features that a model was fitted on."""
    found = getattr(fitted, "n_features_in_", None)
    if found is None and hasattr(fitted, "shape_fit_"):  # a machine whose kernel is a function
        found = fitted.shape_fit_[1]
    return None if found is None else int(found)
