"""Operators of the domain ai.onnx.ml, in which scikit-learn's models are exported.

Labels (whole numbers or words) are not computed: what is explained are the scores or probabilities beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop.engine.frontends.onnx.table import ML, Node, built, operator


def _real(x: Tensor) -> Tensor:
    """The input in the type that the operators compute in: single precision, unless it is double."""
    return x if x.dtype == torch.float64 else x.float()


def _weight(values: Any, *shape: int) -> nn.Parameter:
    """A parameter from an attribute, kept in double precision only where it is cast."""
    return nn.Parameter(torch.tensor(np.asarray(values, np.float32)).reshape(shape), requires_grad=False)


def _scores(node: Node, scores: Tensor) -> Tensor:
    """The scores after the operator's own activation."""
    kind = node["post_transform"] or "NONE"
    if kind == "NONE":
        return scores
    if kind == "LOGISTIC":
        return torch.sigmoid(scores)
    if kind == "SOFTMAX":
        return torch.softmax(scores, 1)
    raise node.refuse(f"post_transform {kind}")


class Linear(nn.Module):
    """LinearClassifier and LinearRegressor: one linear layer and an activation."""

    def __init__(self, node: Node, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        self.node = node
        classes = len(node["classlabels_ints"] or node["classlabels_strings"] or ())
        rows = len(node["intercepts"] or ()) or (
            node["targets"] if node.operation == "LinearRegressor" else max(1, classes)
        )
        self.weight = _weight(node["coefficients"], rows, -1)
        self.bias = _weight(node["intercepts"], rows) if node["intercepts"] else None
        self.mirrored = node.operation == "LinearClassifier" and rows == 1 and classes == 2

    def forward(self, x: Tensor) -> Any:
        """(B, F) to scores (B, classes or targets); of a classifier after a label that is left out."""
        x = _real(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        scores = F.linear(x, self.weight.to(x.dtype), bias)
        if self.mirrored:
            scores = torch.cat((-scores, scores), 1)
        scores = _scores(self.node, scores)
        return (None, scores) if self.node.operation == "LinearClassifier" else scores


class Support(nn.Module):
    """SVMRegressor: a sum of kernels at the support vectors."""

    def __init__(self, node: Node, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        if node["one_class"] or (node["post_transform"] or "NONE") != "NONE":
            raise node.refuse("one_class or a post_transform")
        self.node = node
        self.kernel = node["kernel_type"] if node["n_supports"] else "LINEAR"
        self.vectors = (
            _weight(node["support_vectors"], node["n_supports"], -1) if node["n_supports"] else None
        )
        self.weight = _weight(node["coefficients"], 1, -1)
        self.bias = _weight(node["rho"], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, 1)."""
        x = _real(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.vectors is None:
            return F.linear(x, weight, bias)
        vectors = self.vectors.to(x.dtype)
        if self.kernel == "LINEAR":
            return F.linear(x, weight @ vectors, bias)
        gamma, coef0, degree = self.node["kernel_params"]
        if self.kernel == "RBF":
            kernel = torch.exp(-gamma * (x.unsqueeze(1) - vectors).square().sum(-1))
        else:
            kernel = F.linear(gamma * x, vectors, torch.full_like(vectors[:, 0], coef0))
            kernel = torch.tanh(kernel) if self.kernel == "SIGMOID" else kernel.pow(int(degree))
        return F.linear(kernel, weight, bias)


class Scaler(nn.Module):
    """(x - offset) · scale, one a feature or one for all."""

    def __init__(self, node: Node, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        self.offset = _weight(node["offset"] or [0.0], -1)
        self.scale = _weight(node["scale"] or [1.0], -1)

    def forward(self, x: Tensor) -> Tensor:
        """The input's shape."""
        x = _real(x)
        return (x - self.offset.to(x.dtype)) * self.scale.to(x.dtype)


class Imputer(nn.Module):
    """Missing values replaced."""

    def __init__(self, node: Node, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        if not node["imputed_value_floats"]:
            raise node.refuse("whole numbers or words to impute")
        self.values = _weight(node["imputed_value_floats"], -1)
        self.missing = float(node["replaced_value_float"] or 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The input's shape."""
        missing = torch.isnan(x) if math.isnan(self.missing) else x == self.missing
        return torch.where(missing, self.values.to(x.dtype), x)


for _name, _module in {
    "LinearClassifier": Linear,
    "LinearRegressor": Linear,
    "SVMRegressor": Support,
    "Scaler": Scaler,
    "Imputer": Imputer,
}.items():
    built(_name, _module, ML)


@operator("Normalizer", domain=ML)
def normalizer(node: Node, x: Tensor) -> Tensor:
    """Each sample divided by its norm."""
    x = _real(x)
    if node["norm"] == "MAX":
        size = x.abs().amax(1, True)
    else:
        size = torch.linalg.vector_norm(x, 1 if node["norm"] == "L1" else 2, 1, True)
    return x / size.clamp_min(1e-30)


@operator("Binarizer", domain=ML)
def binarizer(node: Node, x: Tensor) -> Tensor:
    """1 above the threshold, else 0."""
    return (x > node["threshold"]).to(x.dtype)  # type: ignore[no-any-return]


@operator("ArrayFeatureExtractor", domain=ML)
def feature_extractor(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Columns of a table."""
    return x.index_select(-1, indices.flatten().long())


@operator("FeatureVectorizer", domain=ML)
def feature_vectorizer(node: Node, *inputs: Tensor) -> Tensor:
    """Tables side by side."""
    return torch.cat([_real(x if x.dim() > 1 else x.unsqueeze(1)) for x in inputs], 1)
