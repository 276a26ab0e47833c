"""What a caller gives a classical model: tables, sparse rows, texts, images, read as what the network takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.classical.build import Place
from relprop.classical.explained import nonzeros
from relprop.classical.words import Documents, documents
from relprop.errors import InvalidInput

DENSE = 2**28
"""The most values of a sparse batch that are written out where a model has no way around it (2 GiB)."""


@dataclass(frozen=True, slots=True)
class Given:
    """A batch as the caller gave it, and as the network takes it: all features, or listed nonzeros.

    Attributes:
        inputs: what the caller gave.
        dense: all features (B, D), or images (B, H, W); None where nonzeros are listed.
        sparse: the batch as a CSR array, where it came as one or as texts.
        text: where the words of texts stand.
        features: the names of the columns, or a range of their numbers; None for texts and images.
    """

    inputs: Any
    dense: Tensor | None
    sparse: Any = None
    text: Documents | None = None
    features: Sequence[Any] | None = None

    @property
    def batch(self) -> int:
        """The number of samples."""
        return int(self.sparse.shape[0]) if self.dense is None else len(self.dense)

    def parts(self) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
        """What the network takes at a time: from which sample to which, and its arguments."""
        if self.dense is not None:
            yield 0, self.batch, (self.dense,)
            return
        for start, stop in nonzeros.parts(self.sparse):
            yield start, stop, nonzeros.listed(self.sparse[start:stop])

    def first(self, count: int) -> Any:
        """The first samples as the caller gave them, for the estimator's own methods."""
        given = self.inputs
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        if hasattr(given, "tocsr"):
            return given.tocsr()[:count]
        if hasattr(given, "iloc"):
            return given.iloc[:count]
        return [given] if isinstance(given, str) else given[:count]


@dataclass(frozen=True, eq=False)
class Reader:
    """How the inputs of one model are read.

    Attributes:
        name: the model's class.
        place: what is known of its input: categories, missing values, vectorisers.
        width: the number of features that it was fitted on; None where it does not say.
        names: the names of the features that it was fitted on, if they have any.
        texts: whether it takes texts.
    """

    name: str
    place: Place
    width: int | None
    names: tuple[Any, ...] | None
    texts: bool

    def read(self, inputs: Any, lists: bool, absorbs: bool) -> Given:
        """What the network takes.

        lists: whether the network takes nonzeros. absorbs: whether the rules leave the bias to the account, so that
        features which are zero have no relevance. Raises `InvalidInput` for what the model was not fitted for.
        """
        if isinstance(inputs, Given):
            return inputs
        if self.texts:
            return self._texts(inputs, lists, absorbs)
        if hasattr(inputs, "tocsr"):
            given = self._sparse(inputs, lists and absorbs)
            return dataclasses.replace(given, features=self._features(inputs))
        table = self._table(inputs)
        return Given(
            inputs, table, features=None if self.place.images is not None else self._features(inputs)
        )

    def _features(self, inputs: Any) -> Sequence[Any]:
        """What the columns are called: by the data frame, by the model, else by their numbers."""
        given = getattr(inputs, "columns", self.names)
        return range(np.shape(inputs)[1]) if given is None else tuple(given)

    def _texts(self, inputs: Any, lists: bool, absorbs: bool) -> Given:
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
        if not absorbs:
            raise InvalidInput(
                "rules: a bias that is spread or left out would be that of words which are not in the text\n"
                "  do: use rules with bias='absorb'"
            )
        return dataclasses.replace(self._sparse(found.counts, lists), inputs=inputs, text=found)

    def _sparse(self, inputs: Any, lists: bool) -> Given:
        """A sparse array by its nonzeros where every step allows it, else written out."""
        table = inputs.tocsr().astype(np.float64)
        self._check_width(table.shape)
        self._check_values(table.data)
        if not lists or self.place.fills:
            if table.shape[0] * table.shape[1] > DENSE:
                raise InvalidInput(
                    f"inputs: sparse, of shape {table.shape}, and {self.name} needs all values\n"
                    "  do: give fewer rows at a time"
                )
            dense = self._filled(table.toarray())
            return Given(inputs, torch.from_numpy(np.ascontiguousarray(dense)), table)
        table.sum_duplicates()
        return Given(inputs, None, table)

    def _table(self, inputs: Any) -> Tensor:
        """Numbers (B, D) in float64 from an array, a tensor, a data frame or lists."""
        self._check_names(inputs)
        if isinstance(inputs, Tensor):
            inputs = inputs.detach().cpu().numpy()
        raw = inputs.to_numpy() if hasattr(inputs, "to_numpy") else _array(inputs)
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
        given = getattr(inputs, "columns", None)
        if self.names is None or given is None or list(self.names) == list(given):
            return
        known, found = list(self.names), list(given)
        lacks = next((f": {name!r} lacks" for name in known if name not in found), None)
        more = next((f": {name!r} is none of them" for name in found if name not in known), None)
        raise InvalidInput(
            "inputs: the columns are not those that the model was fitted on"
            f"{lacks or more or ', or in another order'}\n  do: X[model.feature_names_in_]"
        )

    def _check_width(self, shape: tuple[int, ...]) -> None:
        if shape[0] == 0:
            raise InvalidInput(f"inputs: an empty batch, shape {tuple(shape)}\n  do: give one sample or more")
        if self.width is not None and shape[1] != self.width:
            raise InvalidInput(
                f"inputs: {shape[1]} features, and the model was fitted on {self.width}\n  do: give its features"
            )

    def _coded(self, raw: Any) -> Any:
        """Columns of categories as codes, all others as numbers."""
        if raw.dtype.kind in "fiub":
            if not self.place.categories:
                return raw
            raw = raw.astype(object)
        elif raw.dtype != object and len(self.place.categories) < raw.shape[1]:
            raise InvalidInput(
                f"inputs: an array of {raw.dtype}, and {self.name} takes numbers\n  do: X.astype(float)"
            )
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
                    f"inputs: column {column} holds {_wrong(values)!r}, which is no number\n"
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


def _array(inputs: Any) -> Any:
    """An array of what is none; raises `InvalidInput` for rows of different lengths."""
    try:
        return np.asarray(inputs)
    except ValueError as error:
        raise InvalidInput(
            "inputs: rows of different lengths, and an estimator takes (samples, features)\n"
            "  do: give every sample all its features"
        ) from error


def _wrong(values: Any) -> str:
    """The first value that is no number."""
    for value in values:
        try:
            float(value)
        except (TypeError, ValueError):
            return str(value)
    return str(values[0])


def _place(known: Sequence[Any], value: Any) -> float:
    """The code of a category: its place among the known ones, −1 for others."""
    for index, one in enumerate(known):
        if one == value or (one is None and value is None) or (one != one and value != value):
            return float(index)
    return -1.0
