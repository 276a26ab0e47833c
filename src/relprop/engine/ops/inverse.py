"""Inverses and determinants of matrices that are data.

Both are homogeneous: f(c A) = cᵏ f(A), of degree k = −1 and n. By Euler's theorem Σ_ij A_ij ∂f/∂A_ij = k f, so that
R_ij = A_ij ∂f/∂A_ij R / (k f) hands on all of R. It is the uniform rule for products (AttnLRP, Prop. 3.2), whose n factors
get 1/n each, and of a single number the identity.
Solutions of linear equations are written as products with inverses; importing this file adds that rewrite to
`canonise.REWRITES`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import REWRITES
from relprop.engine.graph import Graph, Node, Ref, meta_of, name_of
from relprop.engine.ops.elementwise import stabilised
from relprop.engine.ops.table import Operation, register, rows
from relprop.engine.rules import Pass, Product
from relprop.engine.step import Shares, Step


def triangular_inverse(a: Tensor, upper: bool, unitriangular: bool) -> Tensor:
    """The inverse of one triangle of a matrix; with `unitriangular` its diagonal is taken to be 1."""
    unit = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    found: Tensor = torch.linalg.solve_triangular(a, unit, upper=upper, unitriangular=unitriangular)
    return found


def write_out_solutions(graph: Graph) -> Graph:
    """Solutions of linear equations as products: A X = B as A⁻¹ B, X A = B as B A⁻¹."""
    nodes = {node.name: node for node in graph.nodes}
    result: list[Node] = []
    for node in graph.nodes:
        a, b = (meta_of(nodes, ref) if isinstance(ref, Ref) else None for ref in (*node.args, None, None)[:2])
        if node.operation not in _SOLUTIONS or a is None or b is None:
            result.append(node)
            continue
        kwargs = node.kwargs
        own = dataclasses.replace(node, name=f"{node.name}_inverse", kwargs={}, meta=a)
        if "triangular" in node.operation:
            args = (node.args[0], kwargs["upper"], kwargs.get("unitriangular", False))
            own = dataclasses.replace(own, function=triangular_inverse, args=args)
        else:
            own = dataclasses.replace(own, function=torch.ops.aten.linalg_inv.default, args=node.args[:1])
        vectors = len(b.shape) == 1 or b.shape == a.shape[:-1]
        of_vectors = "triangular" not in node.operation and vectors
        left = kwargs.get("left", True)
        factors = [Ref(own.name), node.args[1]]
        function, given = torch.ops.aten.matmul.default, tuple(factors if left else reversed(factors))
        if of_vectors:
            equation = "...ij,...j->...i" if left else "...ij,...i->...j"
            function, given = torch.ops.aten.einsum.default, (equation, factors)
        result += [own, dataclasses.replace(node, function=function, args=given, kwargs={})]
    return dataclasses.replace(graph, nodes=tuple(result))


_SOLUTIONS = ("aten.linalg_solve.default", "aten.linalg_solve_triangular.default")


REWRITES.append(write_out_solutions)


def inverse(step: Step, relevance: Any) -> Shares:
    """Y = A⁻¹, of degree −1: R_A = A ⊙ Yᵀ (R / Y) Yᵀ."""
    s, absorbed = stabilised(step, step.output, 0.0, relevance)
    return Shares({0: step.args[0] * _through(step.output, s)}, absorbed)


def inverse_of_triangle(step: Step, relevance: Tensor) -> Shares:
    """The inverse of one triangle of A, the rest of which is not read; a diagonal that is taken to be 1 is a constant."""
    a, upper, unit = step.args
    s, absorbed = stabilised(step, step.output, 0.0, relevance)
    through = _through(step.output, s)
    if unit:
        absorbed["constant"] = step.account(torch.diag_embed(through.diagonal(dim1=-2, dim2=-1)))
    part = (torch.triu if upper else torch.tril)(a, (1 if upper else -1) if unit else 0)
    return Shares({0: part * through}, absorbed)


def _through(inverse: Tensor, s: Tensor) -> Tensor:
    return inverse.mT @ s @ inverse.mT


def determinant(step: Step, relevance: Any) -> Shares:
    """det A, of degree n: R_A = A ⊙ A⁻ᵀ R / n. The same of log |det A| and of its sign: the identity for a function of it.

    Where A has no inverse, R stays in the account "undistributed".
    """
    a = step.args[0]
    given = {i: r for i, r in enumerate(relevance) if r is not None and i < _PARTS[step.node.operation]}
    total = torch.stack(list(given.values())).sum(0)
    found, failed = torch.linalg.inv_ex(a.to(total.dtype))
    none = failed != 0
    each = torch.where(none, 0.0, total / a.shape[-1])
    lost = [step.account(torch.where(none, r, 0.0), i) for i, r in given.items()]
    shares = torch.where(none[..., None, None], 0.0, a * found.mT) * each[..., None, None]
    return Shares({0: shares}, {"undistributed": torch.stack(lost).sum(0)})


_PARTS = {"aten._linalg_det.default": 1, "aten._linalg_slogdet.default": 2}
"""How many outputs stand before the factors that the matrix was taken apart into."""

_PRODUCTS = (Product, Pass)
rows("linalg_inv", Operation("product", inverse, "both", Product(), _PRODUCTS))
register(name_of(triangular_inverse), Operation("product", inverse_of_triangle, "both", Product(), _PRODUCTS))
rows(
    "_linalg_det _linalg_slogdet",
    Operation("product", determinant, "inputs", Product(), _PRODUCTS),
)
