"""Estimators as what is explained: what a caller gives becomes a network's inputs, and relevance finds its way back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.classical.build import Place, Score, check_fitted, network, predict, refuse
from relprop.classical.steps import Centre, Dense, Network
from relprop.classical.words import Documents, documents
from relprop.engine.plan import Composite
from relprop.engine.presets import named
from relprop.engine.rules import Addition, Epsilon, LinearRule, Rule
from relprop.errors import CaptureError, InvalidInput
from relprop.explanation import Explanation
from relprop.targets import Contrast
from relprop.text.tokens import Tokenised

DENSE = 2**28
"""The most values of a sparse batch that are written out where a model has no way around it (2 GiB)."""

CHECKED = 8
"""Rows whose score is compared with the estimator's own, at each call."""

_EXACT = (("addition", Addition(epsilon=0.0)), ("pool", Epsilon(0.0)))

RULES = Composite(
    (("weighted", Epsilon(0.0)), *_EXACT),
    name="classical",
    about="classical models: LRP-0, so that linear models give weight × (input − reference)",
)
"""What "auto" means for a classical model: no stabiliser anywhere. Perceptrons have the rules of the preset "auto"."""


@dataclass(frozen=True, slots=True)
class Given:
    """A batch as the caller gave it, and as the network takes it: all features, or listed nonzeros."""

    inputs: Any
    args: tuple[Tensor, ...]
    sparse: Any = None
    text: Documents | None = None

    @property
    def batch(self) -> int:
        """The number of samples."""
        return len(self.args[0])


@dataclass(frozen=True, eq=False)
class Estimator:
    """A fitted estimator with the network that computes its score.

    Attributes:
        fitted: the estimator or pipeline; it is read and never written.
        network: the network.
        score: what its scores mean.
        place: what is known of its input: width, categories, missing values, vectorisers.
        texts: whether it takes texts.
    """

    fitted: Any
    network: Network
    score: Score
    place: Place
    texts: bool

    # ------------------------------------------------------------ rules and targets

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
        if callable(target) or (isinstance(target, Tensor) and target.is_floating_point()):
            return target
        if isinstance(target, Contrast):
            return Contrast(self.target(target.a, batch), self.target(target.b, batch))
        if target is None:
            return None
        rows = self._rows(target, batch)
        if self.score.kind == "outlier":
            return torch.tensor([self._side(row) for row in rows], dtype=torch.float64)
        indices = [self._index(row) for row in rows]
        if self._binary:
            return torch.tensor([1.0 if index else -1.0 for index in indices], dtype=torch.float64)
        return indices

    @property
    def _binary(self) -> bool:
        return self.score.kind == "classes" and len(self.score.labels) == 2

    def _rows(self, target: Any, batch: int) -> list[Any]:
        """One target a sample."""
        target = target.tolist() if hasattr(target, "tolist") else target
        one = not isinstance(target, list)
        rows = [target] * batch if one else list(target)
        if len(rows) != batch:
            raise InvalidInput(
                f"target: {len(rows)} targets for {batch} samples\n  do: give one, or one a sample"
            )
        return rows

    def _index(self, target: Any) -> int:
        labels = [_plain(label) for label in self.score.labels]
        target = _plain(target)
        if not isinstance(target, bool) or bool in map(type, labels):
            for index, label in enumerate(labels):
                if type(label) in (int, float) and type(target) in (int, float):
                    if label == target:
                        return index
                elif type(label) is type(target) and label == target:
                    return index
        count = len(labels) or self.place.width
        if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < count:
            return target
        known = ", ".join(map(repr, labels[:8])) or f"0 to {count - 1}"
        raise InvalidInput(
            f"target: {target!r} is none of the {self.score.kind} of this model\n"
            f"  do: one of {known}{' …' if len(labels) > 8 else ''}"
        )

    def _side(self, target: Any) -> float:
        sides: dict[Any, float] = {"outlier": 1.0, "inlier": -1.0, -1: 1.0, 1: -1.0}
        if isinstance(target, (str, int)) and not isinstance(target, bool) and target in sides:
            return sides[target]
        raise InvalidInput(
            f"target: {target!r} is neither side of an outlier score\n"
            "  do: 'outlier' (or -1), which is the default, or 'inlier' (or 1): the score's negative"
        )

    # ------------------------------------------------------------ inputs

    def read(self, inputs: Any, composite: Composite) -> Given:
        """What the network takes. Raises `InvalidInput` for what the estimator was not fitted for."""
        if isinstance(inputs, Given):
            return inputs
        if self.texts:
            return self._read_texts(inputs, composite)
        if hasattr(inputs, "tocsr"):
            return self._read_sparse(inputs, composite)
        return Given(inputs, (self._table(inputs),))

    def _read_texts(self, inputs: Any, composite: Composite) -> Given:
        texts = [inputs] if isinstance(inputs, str) else inputs
        texts = texts.tolist() if hasattr(texts, "tolist") else texts
        if (
            not isinstance(texts, (list, tuple))
            or not texts
            or not all(isinstance(one, str) for one in texts)
        ):
            raise InvalidInput(
                f"inputs: {type(inputs).__name__} is no list of texts, which this pipeline's vectoriser reads\n"
                "  do: give a str or a list of them"
            )
        found = documents(self.place.words, list(texts))
        if not self._absorbing(composite):
            raise InvalidInput(
                "rules: a bias that is spread or left out would be that of words which are not in the text\n"
                "  do: use rules with bias='absorb'"
            )
        return dataclasses.replace(self._read_sparse(found.counts, composite), inputs=inputs, text=found)

    def _read_sparse(self, inputs: Any, composite: Composite) -> Given:
        """A sparse array by its nonzeros where every step allows it, else written out."""
        table = inputs.tocsr().astype(np.float64)
        self._check_width(table.shape)
        self._check_values(table.data)
        if not self.network.sparse or not self._absorbing(composite) or self.place.fills:
            if table.shape[0] * table.shape[1] > DENSE:
                raise InvalidInput(
                    f"inputs: sparse, of shape {table.shape}, and {type(self.fitted).__name__} needs all values\n"
                    "  do: give fewer rows at a time"
                )
            dense = self._filled(table.toarray())
            return Given(inputs, (torch.from_numpy(np.ascontiguousarray(dense)),), table)
        table.sum_duplicates()
        return Given(inputs, listed(table), table)

    @staticmethod
    def _absorbing(composite: Composite) -> bool:
        return all(not isinstance(rule, LinearRule) or rule.bias == "absorb" for _, rule in composite.rules)

    def _table(self, inputs: Any) -> Tensor:
        """Numbers (B, D) in float64 from an array, a tensor, a data frame or lists."""
        self._check_names(inputs)
        if isinstance(inputs, Tensor):
            inputs = inputs.detach().cpu().numpy()
        raw = inputs.to_numpy() if hasattr(inputs, "to_numpy") else np.asarray(inputs)
        if self.place.images is not None:
            return self._images(raw)
        if raw.ndim != 2:
            raise InvalidInput(
                f"inputs: of shape {raw.shape}, and an estimator takes (samples, features)\n"
                f"  do: {'X.reshape(1, -1) for one sample' if raw.ndim == 1 else 'X.reshape(len(X), -1)'}"
            )
        self._check_width(raw.shape)
        table = self._filled(self._coded(raw))
        self._check_values(table)
        return torch.from_numpy(np.array(table, dtype=np.float64))

    def _images(self, raw: Any) -> Tensor:
        """Grey images of the size that the model was fitted on, (B, H, W)."""
        if (
            raw.dtype.kind not in "fiub"
            or raw.ndim != 3
            or raw.shape[1:] != self.place.images
            or not len(raw)
        ):
            raise InvalidInput(
                f"inputs: of shape {raw.shape}, and the model was fitted on grey images of {self.place.images}\n"
                "  do: give (samples, height, width) of that size"
            )
        self._check_values(raw)
        return torch.from_numpy(np.array(raw, dtype=np.float64))

    def _check_names(self, inputs: Any) -> None:
        known = getattr(self.fitted, "feature_names_in_", None)
        given = getattr(inputs, "columns", None)
        if known is None or given is None or list(known) == list(given):
            return
        wrong = next((name for name in known if name not in list(given)), None)
        raise InvalidInput(
            "inputs: the columns are not those that the model was fitted on"
            + (f": {wrong!r} lacks" if wrong is not None else ", or in another order")
            + "\n  do: X[model.feature_names_in_]"
        )

    def _check_width(self, shape: tuple[int, ...]) -> None:
        if shape[0] == 0:
            raise InvalidInput(f"inputs: an empty batch, shape {tuple(shape)}\n  do: give one sample or more")
        wanted = width_of(self.fitted, self.place)
        if wanted is not None and shape[1] != wanted:
            raise InvalidInput(
                f"inputs: {shape[1]} features, and the model was fitted on {wanted}\n  do: give its features"
            )

    def _coded(self, raw: Any) -> Any:
        """Columns of categories as codes, all others as numbers."""
        if raw.dtype.kind in "fiub":
            if not self.place.categories:
                return raw
            raw = raw.astype(object)
        table = np.zeros(raw.shape)
        for column in range(raw.shape[1]):
            values = raw[:, column]
            known = self.place.categories.get(column)
            try:
                table[:, column] = (
                    values.astype(np.float64) if known is None else [_place(known, value) for value in values]
                )
            except (TypeError, ValueError) as error:
                raise InvalidInput(
                    f"inputs: column {column} holds {str(values[0])!r}, which is no number\n"
                    "  do: give numbers, or categories that the model's OneHotEncoder was fitted on"
                ) from error
        return table

    def _filled(self, table: Any) -> Any:
        """Missing values as the model's imputer fills them in."""
        if not self.place.fills:
            return table
        table = np.array(table, dtype=np.float64)
        for column, (missing, value) in self.place.fills.items():
            own = table[:, column]
            lacks = np.isnan(own) if missing is None or missing != missing else own == missing
            own[lacks] = value
        return table

    def _check_values(self, values: Any) -> None:
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise InvalidInput(
                f"inputs: {count} of {values.size} values are NaN or infinite\n"
                "  do: find where they come from, or begin the pipeline with a SimpleImputer"
            )
        if self.place.counts and values.size and values.min() < 0:
            raise InvalidInput(
                f"inputs: {values.min():.4g} is negative, and this model reads counts\n  do: give values of 0 or more"
            )

    # ------------------------------------------------------------ explanations

    def explain(
        self,
        explainer: Callable[[Any, Sequence[Any]], list[Explanation]],
        composite: Composite,
        inputs: Any,
        targets: Sequence[Any],
    ) -> list[Explanation]:
        """One explanation a target of what the caller gave, by an explainer of the network's own inputs."""
        given = self.read(inputs, composite)
        resolved = [self.target(target, given.batch) for target in targets]
        results = explainer(given.args, resolved)
        self._check(given, results[0].output)
        return [self._finished(one, given, target) for one, target in zip(results, resolved, strict=True)]

    def _check(self, given: Given, output: Tensor) -> None:
        """Raise `CaptureError` where the network's scores are not the estimator's own."""
        source = given.inputs
        if isinstance(source, str):
            source = [source]
        if isinstance(source, Tensor):
            source = source.detach().cpu().numpy()
        first = source.iloc[:CHECKED] if hasattr(source, "iloc") else source[:CHECKED]
        own = np.asarray(self.score.own(first), dtype=np.float64)
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

    def _finished(self, explanation: Explanation, given: Given, target: Any) -> Explanation:
        """The explanation in the form of what the caller gave."""
        relevance = explanation.relevance
        listed_values = isinstance(relevance, tuple)
        text = None
        if listed_values:
            relevance = _sparse(given.sparse, relevance[0])
        elif given.sparse is not None:
            relevance = _sparse_of_dense(relevance)
        if given.text is not None:
            relevance = given.text.of_words(relevance)
            text = Tokenised(given.text.texts, given.text.pieces, list(given.text.texts))
        elif given.sparse is not None:
            relevance = _csr_tensor(relevance)
        resolved = explanation.target
        if self._binary and (target is None or isinstance(target, Tensor)):
            signs = torch.ones(given.batch) if target is None else target
            resolved = (signs > 0).long()
        return dataclasses.replace(
            explanation, relevance=relevance, inputs=given.inputs, text=text, target=resolved
        )


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's own."""
    return value.item() if hasattr(value, "item") else value


def width_of(fitted: Any, place: Place) -> int | None:
    """The number of features that a model was fitted on; None for texts."""
    if place.words:
        return sum(width for _, width in place.words)
    found = getattr(fitted, "n_features_in_", None)
    if found is None and hasattr(fitted, "shape_fit_"):  # a machine whose kernel is a function
        found = fitted.shape_fit_[1]
    return None if found is None else int(found)


def _place(known: Sequence[Any], value: Any) -> float:
    """The code of a category: its place among the known ones, −1 for others."""
    for index, one in enumerate(known):
        if one == value or (one is None and value is None) or (one != one and value != value):
            return float(index)
    return -1.0


def listed(table: Any) -> tuple[Tensor, Tensor]:
    """The nonzeros of a CSR array as rows of one length, a power of two: values and columns, (B, K)."""
    counts = np.diff(table.indptr)
    longest = 1 << max(0, int(counts.max(initial=1)) - 1).bit_length()
    values = np.zeros((table.shape[0], longest))
    columns = np.zeros((table.shape[0], longest), dtype=np.int64)
    row = np.repeat(np.arange(table.shape[0]), counts)
    place = np.arange(table.nnz) - np.repeat(table.indptr[:-1], counts)
    values[row, place], columns[row, place] = table.data, table.indices
    return torch.from_numpy(values), torch.from_numpy(columns)


def _sparse(table: Any, relevance: Tensor) -> Any:
    """The relevance of listed values as a CSR array of the shape of the input."""
    counts = np.diff(table.indptr)
    row = np.repeat(np.arange(table.shape[0]), counts)
    place = np.arange(table.nnz) - np.repeat(table.indptr[:-1], counts)
    result = table.copy()
    result.data = relevance.numpy()[row, place]
    return result


def _sparse_of_dense(relevance: Tensor) -> Any:
    from scipy import sparse

    return sparse.csr_array(relevance.numpy())


def _csr_tensor(table: Any) -> Tensor:
    """A CSR array as a sparse tensor."""
    parts = (table.indptr, table.indices, table.data)
    rows, columns, values = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    with warnings.catch_warnings(
        action="ignore", category=UserWarning
    ):  # CSR tensors are in beta, says torch
        return torch.sparse_csr_tensor(
            rows.long(), columns.long(), values.double(), size=table.shape, check_invariants=False
        )


def rewritten(fitted: Any, reference: Any = None, **options: Any) -> Estimator:
    """The estimator with its network.

    Raises:
        UnsupportedEstimator: it, or a step of it, has no rewriting.
        InvalidInput: it is not fitted, or an option is none of its own.
    """
    check_fitted(fitted)
    place = Place(0, options={name: value for name, value in options.items() if value is not None})
    first = _first(fitted)
    place.text = first is not None and hasattr(first, "build_analyzer")
    texts = place.text
    width = 0 if texts else width_of(fitted, place)
    place.images = getattr(first, "image_shape_", None)
    if width is None and place.images is None:
        raise refuse(fitted, "does not say how many features it takes")
    place.width = int(width or 0)
    place.raw = tuple(range(place.width))
    if reference is not None:
        values = np.asarray(
            reference.detach().cpu() if isinstance(reference, Tensor) else reference, dtype=np.float64
        )
        if (
            texts
            or place.images is not None
            or values.shape not in ((), (place.width,))
            or not np.isfinite(values).all()
        ):
            raise InvalidInput(
                f"reference: of shape {values.shape}, and the model takes {place.width} features\n"
                "  do: give one finite value, or one a feature"
            )
        place.reference = torch.from_numpy(np.array(np.broadcast_to(values, (place.width,))))
        place.fixed = True
        if bool(place.reference.any()):
            place.steps.append(Centre(reference=place.reference))
    score = predict(fitted, place)
    if place.options.keys() - {"precomputed"}:
        raise InvalidInput(
            f"{', '.join(sorted(place.options))}: no option of {type(fitted).__name__}\n  do: leave it out"
        )
    return Estimator(fitted, network(place), score, place, texts)


def _first(fitted: Any) -> Any:
    """The first step of a model: what meets the input."""
    while True:
        steps = getattr(fitted, "steps", None) or getattr(fitted, "transformer_list", None)
        if not steps or not isinstance(steps, list):
            return fitted
        fitted = steps[0][1]
