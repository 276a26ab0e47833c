"""Composites and plans: which rule each operation of a graph gets, and why. A plan is total, or an error says what lacks."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

import torch

from relprop.engine.analyse import Facts, first_and_last
from relprop.engine.canonise import convolution_arguments
from relprop.engine.graph import Graph, Node, Ref, meta_of, parents, refs
from relprop.engine.joint import joint_linear
from relprop.engine.ops import KINDS, OPS, Operation
from relprop.engine.rules import Addition, Attention, LinearRule, Pass, Product, Recurrent, Rule
from relprop.engine.spectra import is_complex, is_linear
from relprop.errors import InvalidInput, RelevanceWarning, UnsupportedOperation

WEIGHTED = ("linear", "convolution")
POSITIONS = {
    "first": "first weighted operation",
    "last": "last weighted operation",
    "tokenwise": "on the tokens or patches of a network with attention",
}

Where = str | type | Callable[["Planned"], bool]


@dataclass(frozen=True, slots=True)
class Planned:
    """One row of a plan: an operation, where it comes from, its rule and why."""

    name: str
    operation: str
    kind: str
    module: str
    module_class: str
    calls: tuple[str, ...]
    source: str
    shape: str
    first: bool = False
    last: bool = False
    tokenwise: bool = False
    rule: Rule | None = None
    why: str = ""


@dataclass(frozen=True)
class Composite:
    """Which rule an operation gets: pairs (where, rule), of which the first match wins.

    `where` is one of
        a kind of operation: "linear", "convolution", "batch_norm", "norm", "pool", "max", "addition", "product",
            "softmax", "activation", …; "weighted" means linear or convolution;
        a position: "first" or "last", the first or last weighted operations on the way from the input to the output;
            "tokenwise", in a network with attention its linear operations and the convolutions that cut patches
            (those whose areas do not overlap), not its other convolutions;
        a glob over module paths: "layer1.*", "features.0" (write "path:linear" where a module has a kind's name);
            a rule for linear operations then applies to the weighted ones;
        a module class: `nn.Conv2d`, for every operation that runs directly in such a module;
        a predicate: a function of the `Planned` operation.
    Operations that nothing matches keep the default of their kind (the identity for activations, shares in proportion
    for sums, …), which `relprop plan` prints.

    Options:
        fold: batch normalisation becomes part of the linear operation before it, where that is exact (default True).
    """

    rules: tuple[tuple[Where, Rule], ...] = ()
    fold: bool = True
    name: str = ""
    about: str = field(default="", compare=False)

    def __init__(
        self, rules: Iterable[tuple[Where, Rule]] = (), fold: bool = True, name: str = "", about: str = ""
    ) -> None:
        if not isinstance(rules, Iterable):
            raise InvalidInput(
                f"Composite: {rules!r} is no list of pairs\n"
                '  do: give pairs such as ("convolution", relprop.rules.ZPlus())'
            )
        pairs = tuple(rules)
        for pair in pairs:
            where, rule = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
            if not isinstance(rule, Rule) or not (isinstance(where, (str, type)) or callable(where)):
                named = f"{rule.__name__}() in place of {rule.__name__}, in " if _is_rule_class(rule) else ""
                raise InvalidInput(
                    f"Composite: {pair!r} is not a pair of where and rule\n"
                    f'  do: give {named}pairs such as ("convolution", relprop.rules.ZPlus())'
                )
        object.__setattr__(self, "rules", pairs)
        object.__setattr__(self, "fold", fold)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "about", about)

    def __str__(self) -> str:
        rows = [(_where(where), str(rule)) for where, rule in self.rules]
        return table(("where", "rule"), [*rows, ("everything else", "the default of its kind")])

    def __hash__(self) -> int:
        return hash((self.rules, self.fold))


def _is_rule_class(value: object) -> TypeGuard[type[Rule]]:
    """Whether a class was given where one of its instances is meant."""
    return isinstance(value, type) and issubclass(value, Rule)


def _where(where: Where) -> str:
    if isinstance(where, str):
        return where
    return getattr(where, "__qualname__", repr(where))


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """Every operation that relevance passes, in the order of the forward pass, with its rule."""

    rows: tuple[Planned, ...]
    composite: Composite

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        head = ("operation", "module", "source", "output", "rule", "why")
        return table(
            head, [(r.operation, r.module or "·", r.source, r.shape, str(r.rule), r.why) for r in self.rows]
        )

    def __repr__(self) -> str:
        return str(self)  # as notebooks show it

    def as_dicts(self) -> list[dict[str, str]]:
        """The rows as plain strings, for files and machines."""
        keys = ("name", "operation", "kind", "module", "module_class", "source", "shape")
        return [
            {k: str(getattr(r, k)) for k in keys} | {"rule": repr(r.rule), "why": r.why} for r in self.rows
        ]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A plain text table, columns aligned."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def assign(graph: Graph, facts: Facts, composite: Composite) -> Plan:
    """The plan of a composite for a graph.

    Raises:
        UnsupportedOperation: operations on the way of relevance have no row in the table; all are named.
        InvalidInput: the composite gives an operation a rule that it cannot obey.
    """
    refuse(graph, facts)
    first, last = first_and_last(graph, OPS, facts)
    attends = has_attention(graph, facts)
    nodes = {node.name: node for node in graph.nodes}
    rows = []
    used: set[int] = set()
    for node in carriers(graph, facts):
        operation = OPS[node.operation]
        kind = kind_of(node, operation, facts)
        planned = Planned(
            node.name,
            node.operation + (" + batch_norm" if node.folded else ""),
            kind,
            node.module,
            node.module_class,
            node.calls,
            node.source,
            str(node.meta if not isinstance(node.meta, tuple) else node.meta[0] if node.meta else ""),
            node.name in first,
            node.name in last,
            attends and (kind == "linear" or (kind == "convolution" and _cuts_patches(node, nodes))),
        )
        rows.append(_with_rule(planned, operation, composite, used))
    for index, (where, rule) in enumerate(composite.rules):
        if index not in used and not _is_kind(where):
            warnings.warn(
                f"the composite's pair {_where(where)!r}: {rule} applies to no operation of this model",
                RelevanceWarning,
                stacklevel=2,
            )
    return Plan(tuple(rows), composite)


def kind_of(node: Node, operation: Operation, facts: Facts) -> str:
    """The row's kind; a linear operation both of whose factors are data is a product."""
    if operation.kind in WEIGHTED and node.function is not joint_linear:  # whose data are summands
        factors = [argument for i, argument in enumerate(node.args) if not _is_bias(node, i)]
        if sum(ref in facts.data for argument in factors for ref in refs(argument)) > 1:
            return "product"
    elementwise = operation.kind == "product" and Pass in operation.rules
    if elementwise and sum(ref in facts.data for ref in refs(node.args[:2])) < 2:
        return "activation"
    return operation.kind


def _is_bias(node: Node, position: int) -> bool:
    first = ("addmm", "baddbmm", "addmv", "addr")
    return position == (0 if any(name in node.operation for name in first) else 2)


def has_attention(graph: Graph, facts: Facts) -> bool:
    """Whether values of data are weighed by what a softmax has made of data, in one operation or written out."""
    weights: set[str] = set()
    for node in carriers(graph, facts):
        operation = OPS[node.operation]
        if isinstance(operation.default, Attention):
            return True
        kind = kind_of(node, operation, facts)
        weighed = any(ref.name in weights for ref in parents(node))
        if weighed and kind == "product" and operation.kind in WEIGHTED:
            return True
        if kind == "softmax" or (weighed and kind in ("selection", "activation")):
            weights.add(node.name)
    return False


def _cuts_patches(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether a convolution reads areas of more than one place that do not overlap: its stride is its kernel."""
    found = convolution_arguments(node)
    if found is None or found["transposed"] or not isinstance(found["weight"], Ref):
        return False
    kernel = meta_of(nodes, found["weight"])
    if kernel is None or math.prod(kernel.shape[2:]) == 1 or set(found["dilation"]) != {1}:
        return False
    stride = tuple(found["stride"]) * (len(kernel.shape) - 2 if len(found["stride"]) == 1 else 1)
    return stride == kernel.shape[2:]


def carriers(graph: Graph, facts: Facts) -> list[Node]:
    """The operations that relevance passes, in the order of the forward pass."""
    names = {ref.name for ref in facts.data}
    return [node for node in graph.nodes if node.kind == "call" and node.name in names]


def _refused(node: Node, operation: Operation, facts: Facts) -> str | None:
    """Why this use of an operation cannot be explained, or None."""
    for position, reason in operation.fixed.items():
        if any(ref in facts.data for ref in refs(node.args[position : position + 1])):
            return reason
    return operation.refuses(node)


_OF_COMPLEX = "no relevance function for complex numbers"
_QUANTISED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)


def _quantised(graph: Graph, facts: Facts) -> list[Node]:
    """Where real numbers that carry relevance become numbers of few bits, or are computed with as such."""
    return [
        node
        for node in graph.nodes
        if any(ref in facts.data for ref in parents(node))
        and (
            node.operation.startswith(("quantized.", "aten.quantize_per_"))
            or any(meta.dtype in _QUANTISED for meta in node.metas)
        )
    ]


def refuse(graph: Graph, facts: Facts) -> None:
    """Raise `UnsupportedOperation` that names every operation without a relevance function."""
    quantised = _quantised(graph, facts)
    if quantised:
        raise UnsupportedOperation(
            f"{quantised[0].operation}: no relevance function for quantised numbers\n  at {quantised[0].where()}\n"
            "  do: explain the model as it was before it was quantised"
        )
    problems: list[str] = []
    before: list[str] = []
    of_complex = {node.name for node in graph.nodes if is_complex(node)}
    for node in carriers(graph, facts):
        operation = OPS.get(node.operation)
        reason = "no relevance function" if operation is None else _refused(node, operation, facts)
        own = node.name in of_complex or any(r.name in of_complex and r in facts.data for r in parents(node))
        if own:
            reason = _OF_COMPLEX
        if reason is not None:
            shape = node.meta if not isinstance(node.meta, tuple) else node.meta[0] if node.meta else None
            one = sum(ref in facts.data for ref in parents(node)) < 2
            found = before if own and one and is_linear(node) else problems
            found.append(f"{node.operation}: {reason}\n  at {node.where()}, output {shape}")
    problems = problems or before  # what is linear in complex numbers stands only before what is not
    if problems:
        more = f"\n… and {len(problems) - 8} more" if len(problems) > 8 else ""
        instead = "compute it from real and imaginary parts (torch.view_as_real)"
        if not any(_OF_COMPLEX in problem for problem in problems):
            instead = "add a row for it with relprop.register (docs/operations.md)"
        raise UnsupportedOperation(
            "\n".join(problems[:8]) + more + f"\n  do: {instead}, or explain a part of the model without it"
        )


def _with_rule(planned: Planned, operation: Operation, composite: Composite, used: set[int]) -> Planned:
    if planned.kind == "recurrent":
        return _with_rules_of_parts(planned, composite, used)
    for index, (where, rule) in enumerate(composite.rules):
        why = _match(where, planned)
        if why is None or (not isinstance(rule, operation.rules) and not _is_kind(where)):
            continue
        if why.startswith("path") and isinstance(rule, LinearRule) and planned.kind not in WEIGHTED:
            continue
        if planned.kind == "product" and operation.kind in WEIGHTED and isinstance(rule, LinearRule):
            continue  # a product of two data tensors is no linear operation, whatever its spelling
        if not isinstance(rule, operation.rules):
            raise InvalidInput(
                f"rules: {rule} cannot be used for {planned.operation} ({planned.module or 'the model itself'}, {planned.source})\n"
                f"  do: one of {', '.join(t.__name__ for t in operation.rules)}, or a narrower `where` than {_where(where)!r}"
            )
        used.add(index)
        return dataclasses.replace(planned, rule=rule, why=why)
    default = operation.default
    if planned.kind == "product" and operation.kind in WEIGHTED:
        default = operation.several
    return dataclasses.replace(planned, rule=default, why=f"default of {planned.kind}")


_PART_KINDS = {"linear": (*WEIGHTED, "weighted"), "product": ("product",), "addition": ("addition",)}
_PART_RULES: dict[str, type[Rule]] = {"linear": LinearRule, "product": Product, "addition": Addition}


def _with_rules_of_parts(planned: Planned, composite: Composite, used: set[int]) -> Planned:
    """A recurrent operation gets what the composite gives to the operations that it consists of.

    Positions do not select it: a recurrent layer stands first and last at once.
    """
    found: dict[str, Rule] = {}
    reasons: list[str] = []
    for index, (where, rule) in enumerate(composite.rules):
        for part, kinds in _PART_KINDS.items():
            own = _rule_of_part(part, rule)
            if part in found or own is None or (isinstance(where, str) and where in POSITIONS):
                continue
            if _is_kind(where):
                why = f"kind {where}" if where in (*kinds, planned.kind) else None
            else:
                why = _match(where, planned)
            if why is not None:
                found[part] = own
                reasons.append(why)
                used.add(index)
        if where == planned.kind and not isinstance(rule, (Recurrent, *_PART_RULES.values())):
            raise InvalidInput(
                f"rules: {rule} cannot be used for {planned.operation} ({planned.module or 'the model itself'}, {planned.source})\n"
                "  do: give it Recurrent(…), or a rule for linear operations, products or additions"
            )
    why = ", ".join(dict.fromkeys(reasons)) or f"default of {planned.kind}"
    return dataclasses.replace(planned, rule=Recurrent(**found), why=why)  # type: ignore[arg-type]


def _rule_of_part(part: str, rule: Rule) -> Rule | None:
    """What a rule says of a part of a recurrent operation; None where it does not speak of it."""
    if isinstance(rule, Recurrent):
        return getattr(rule, part)  # type: ignore[no-any-return]
    return rule if isinstance(rule, _PART_RULES[part]) else None


def _is_kind(where: Where) -> bool:
    return isinstance(where, str) and (where in KINDS or where in POSITIONS or where == "weighted")


def _match(where: Where, planned: Planned) -> str | None:
    """Why the operation is selected, or None."""
    if isinstance(where, type):
        same = planned.module_class == f"{where.__module__}.{where.__qualname__}"
        return f"module class {where.__name__}" if same else None
    if callable(where):
        return f"predicate {_where(where)}" if where(planned) else None
    if where in KINDS or where == "weighted":
        kinds = WEIGHTED if where == "weighted" else (where,)
        return f"kind {where}" if planned.kind in kinds else None
    if where in POSITIONS:
        return POSITIONS[where] if getattr(planned, where) else None
    pattern = where.removeprefix("path:")
    return f"path {pattern}" if fnmatch.fnmatchcase(planned.module, pattern) else None
