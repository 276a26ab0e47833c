"""The table of operations: what relprop can walk through, and how. The table is the list of what is
supported.

An operation is one row: its kind (which composites select by), one pure function from output relevance to
input relevances, what that function reads, and a default rule. `register` adds a row from outside the
package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from relprop.engine.graph import Node, Ref, name_of, parents, refs
from relprop.engine.rules import Attention, Pass, Rule
from relprop.engine.step import Shares, Step

Propagate = Callable[[Step, Any], Shares]
Nonnegative = Literal["always", "if inputs", "never"] | Callable[[Node, Set[Ref]], bool]

KINDS: dict[str, str] = {
    "linear": "products with a constant matrix: linear, matmul, einsum",
    "convolution": "convolutions and transposed convolutions",
    "batch_norm": "normalisation by running statistics: a linear operation of its own where it is not folded",
    "norm": "normalisation by the sample's own statistics: layer, group, instance, RMS, local response norm",
    "pool": "averages and sums: average pooling, mean, sum, up-sampling",
    "max": "selections by size: max pooling, maximum, sort",
    "addition": "sums of two or more data tensors",
    "recurrent": "recurrent layers and cells, and the pre-activations of written-out ones",
    "product": "products of two data tensors: gates, attention",
    "softmax": "softmax and its relatives",
    "activation": "elementwise functions and scalings by constants",
    "selection": "reshapes, slices, concatenations, copies: values move and stay as they are",
    "embedding": "look-ups of token ids: where relevance of tokens ends",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table.

    `propagate(step, relevance)` returns the `Shares` of the arguments; `relevance` is a tensor of the
    output's shape, or a list with one (or None) per part where the operation has several outputs. `reads`:
    which values it needs at the time of the walk ("inputs", "output", "both" or "nothing"); a value that
    nothing reads is freed. `rules`: the types of rule it obeys; a composite that assigns another is an
    error. `nonnegative`: when its output is never below zero.
    `refuses(node)`: why a spelling of the operation cannot be explained ("dropout in training mode"), or
    None.
    `remembers(*arguments)`: runs the operation in the forward pass where the walk wants more of it than its
    values: returns the output and what the walk finds as `step.memory` (the winners of a max pooling).
    `computes(*arguments)`: what runs in the operation's place in the forward pass, where the same can be had for less.
    `several`: the default rule of a linear operation several of whose factors are data.
    `proportional`: under ε, γ, αβ and z⁺ (a sum: in proportion to its summands) it hands nothing to a value of 0.
    `fixed`: arguments that must not depend on the explained input, by position, with the reason that is
    given if they do.
    """

    kind: str
    propagate: Propagate
    reads: Literal["inputs", "output", "both", "nothing"] = "both"
    default: Rule = field(default_factory=Pass)
    rules: tuple[type[Rule], ...] = (Pass,)
    nonnegative: Nonnegative = "never"
    refuses: Callable[[Node], str | None] = lambda node: None
    fixed: Mapping[int, str] = field(default_factory=dict)
    remembers: Callable[..., tuple[Any, Any]] | None = None
    computes: Callable[..., Any] | None = None
    proportional: bool = False
    several: Rule = field(default_factory=Attention)

    def is_nonnegative(self, node: Node, known: Set[Ref]) -> bool:
        """Whether the node's output is never negative, given the values known not to be."""
        if callable(self.nonnegative):
            return self.nonnegative(node, known)
        if self.nonnegative == "if inputs":
            found = list(parents(node))
            return bool(found) and all(ref in known for ref in found)
        return self.nonnegative == "always"


def pass_on(step: Step, relevance: Tensor) -> Shares:
    """The identity: the first argument receives the output's relevance (AttnLRP, Eq. 9), also where φ(0) is not 0. The walk
    does this without making a step."""
    return Shares({0: relevance})


OPS: dict[str, Operation] = {}
"""From the name of an operation, as `name_of` gives it ("aten.relu.default"), to its row."""


def register(operation: str | Callable[..., Any], row: Operation, *, replace: bool = False) -> None:
    """Add an operation to the table: everything that is captured from now on can contain it.

    Args:
        operation: its name ("mylib::op" and "aten.op.overload" as captured graphs print it,
        "mylib.op.default"), or
            the operator itself (`torch.ops.mylib.op.default`).
        row: kind, relevance function, default rule.
        replace: needed to replace an existing row, so that it cannot happen by accident.

    Raises:
        ValueError: the operation has a row and `replace` is not set, or the kind is unknown.
    """
    name = operation if isinstance(operation, str) else name_of(operation)
    if row.kind not in KINDS:
        raise ValueError(f"kind: {row.kind!r} is none of {', '.join(KINDS)}")
    if name in OPS and not replace:
        raise ValueError(f"{name} has a row already\n  do: pass replace=True to replace it")
    OPS[name] = row


def rows(names: str, row: Operation, prefix: str = "aten.") -> None:
    """The same row for several operations, given by their names without the prefix, separated by spaces."""
    for name in names.split():
        register(prefix + name if "." in name else f"{prefix}{name}.default", row)


def first_known(position: int) -> Callable[[Node, Set[Ref]], bool]:
    """Never negative where the argument at `position` is not."""

    def known(node: Node, values: Set[Ref]) -> bool:
        found = list(refs(node.args[position])) if position < len(node.args) else []
        return bool(found) and all(ref in values for ref in found)

    return known
