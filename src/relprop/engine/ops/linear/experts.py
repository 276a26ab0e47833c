"""The experts of a mixture: products with one matrix out of several for each row."""

from __future__ import annotations

from torch import Tensor

from relprop.engine.experts import grouped_product
from relprop.engine.graph import name_of
from relprop.engine.ops.linear.maps import BILINEAR_RULES
from relprop.engine.ops.linear.products import two_factors
from relprop.engine.ops.table import Operation, register
from relprop.engine.rules import Epsilon
from relprop.engine.step import Shares, Step


def experts(step: Step, relevance: Tensor) -> Shares:
    """y_s = x_s W_e, e the expert of row s: a linear operation, the rows in the order of their experts.

    Which expert a row goes to is a constant; what the router's weights get, the product with them decides.
    """
    ends: Tensor = step.args[2]

    def operator(x: Tensor, w: Tensor) -> Tensor:
        return grouped_product(x, w, ends)

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        return grouped_product(v, w.mT, ends)

    return two_factors(step, 0, 1, operator, relevance, transpose=transpose)


register(name_of(grouped_product), Operation("linear", experts, "both", Epsilon(), BILINEAR_RULES))
