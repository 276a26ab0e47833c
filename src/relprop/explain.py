"""`explain` and `Explainer`: capture, canonise, analyse, plan, walk and audit, in that order."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from relprop.engine import audit as accounts
from relprop.engine import capture as capturing
from relprop.engine.analyse import Facts, analyse, values_of
from relprop.engine.canonise import canonise
from relprop.engine.exported import path_of
from relprop.engine.graph import Graph, Meta, Ref, consumers, meta_of
from relprop.engine.isolate import LOCK, quietly, run_isolated
from relprop.engine.ops import KINDS, OPS
from relprop.engine.plan import Composite, Plan, assign, refuse
from relprop.engine.presets import named
from relprop.engine.propagate import HALF, Program, Weights, prepare, record, walk
from relprop.engine.rules import Rule
from relprop.engine.signature import signature_of, structure_of
from relprop.engine.tape import trace
from relprop.errors import CaptureError, ConservationError, InvalidInput, UnsupportedOperation
from relprop.explanation import Explanation
from relprop.targets import Score, Target, main_output, weights_of

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def explain(
    model: Any,
    inputs: Inputs,
    target: Target = None,
    rules: Any = "auto",
    method: str = "lrp",
    **options: Any,
) -> Explanation:
    """Explain the score that a model gives to `target`, by layer-wise relevance propagation or another method.

    Args:
        model: a `torch.nn.Module` in eval mode, a `torch.export.ExportedProgram` or the path of a saved one (`.pt2`).
            It is never changed.
        inputs: a tensor (B, …), a tuple of tensors (positional arguments) or a dict (keyword arguments).
        target: None for the class with the largest output, an int or B of them, a tuple (an index into an output of
            more than two dimensions), a float tensor of the output's shape (weights of a sum of outputs), or a callable
            that takes the output and returns one score a sample, (B,).
        rules: the name of a preset (`relprop.presets()`), a rule for all linear operations, or a `Composite`.
        method: "lrp", or one of `relprop.methods()`.
        options: see `Explainer`.

    Returns:
        An `Explanation`: relevance of the input's shape, score, audit.

    Raises:
        InvalidInput: an argument is wrong; the message says which and what to do.
        UnsupportedOperation: the model has an operation that no rule covers; nothing has been computed.
        CaptureError: the model cannot be captured.
        ConservationError: the audit does not close.
    """
    return Explainer(model, rules, method, **options)(inputs, target)


@dataclass(slots=True)
class Captured:
    """A canonised graph with its facts, and what is derived from it on first use."""

    graph: Graph
    facts: Facts
    store: Weights = field(default_factory=Weights)
    programs: dict[Any, Program] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


_CACHE: weakref.WeakKeyDictionary[Any, dict[Any, Captured]] = weakref.WeakKeyDictionary()


def clear_cache() -> None:
    """Forget all captured graphs and everything derived from models' weights."""
    with LOCK:
        _CACHE.clear()


class Explainer:
    """Explains one model many times: the model is captured and planned once for each kind of input.

    Args:
        model, rules, method: as for `explain`.
        example: an input to capture and plan at once, so that `plan` can be printed before anything is explained.
        audit: keep the account and check it (default). Without it `Explanation.audit` is None.
        batch_size: the number of samples that are walked at a time; by default as many as fit the free memory.

    `plan` is the plan for the inputs seen last (or the example). An explainer may be shared by threads.
    """

    def __init__(
        self,
        model: Any,
        rules: Any = "auto",
        method: str = "lrp",
        example: Inputs | None = None,
        *,
        audit: bool = True,
        batch_size: int | None = None,
    ) -> None:
        from relprop.methods import METHODS

        if method not in METHODS:
            raise InvalidInput(f"method: {method!r} is unknown\n  do: one of {', '.join(METHODS)}")
        if batch_size is not None and batch_size < 1:
            raise InvalidInput(
                f"batch_size: {batch_size} is below 1\n  do: give the number of samples that are walked at a time"
            )
        self.model = capturing.load(model) if isinstance(model, (str, Path)) else capturing.unwrapped(model)
        with LOCK:
            _check_model(self.model)
        self.composite = composite_of(rules)
        self.method = method
        self.audit = audit
        self.batch_size = batch_size
        self._plan: Plan | None = None
        if example is not None:
            args, kwargs = arguments(example)
            with LOCK:
                check_inputs(self.model, args, kwargs)
            self.program(args, kwargs)

    @property
    def plan(self) -> Plan:
        """Every operation that relevance passes, its rule and why. Raises `InvalidInput` before any input is known."""
        if self._plan is None:
            raise InvalidInput(
                "plan: the model has not been captured yet\n  do: give example= an input, or explain one"
            )
        return self._plan

    def __call__(self, inputs: Inputs, target: Target = None) -> Explanation:
        """Explain one batch. See `explain`."""
        return self.explain_targets(inputs, [target])[0]

    @torch.inference_mode(False)  # the walk forms adjoints by differentiating single operations
    def explain_targets(self, inputs: Inputs, targets: Sequence[Target]) -> list[Explanation]:
        """One explanation for each of several targets of the same inputs, from one forward pass."""
        from relprop.methods import METHODS

        args, kwargs = arguments(inputs)
        with LOCK:  # another thread may be capturing this model, its parameters swapped for the moment
            _check_model(self.model)
            check_inputs(self.model, args, kwargs)
        if not targets:
            raise InvalidInput("targets: the list is empty\n  do: give one target or more")
        captured, program = self.program(args, kwargs)
        batch = capturing.batch_size((args, kwargs))
        size = batch if self.batch_size is None else self.batch_size
        if not captured.graph.batched:
            size = 1
        elif self.batch_size is None:
            size = min(batch, fitting(captured.graph, (args, kwargs)))
        parts: list[list[Explanation]] = []
        for start in range(0, batch, size):
            part_args, part_kwargs = slice_batch((args, kwargs), batch, start, min(start + size, batch))
            part_targets = [
                slice_target(target, batch, start, min(start + size, batch), _rank(captured.graph))
                for target in targets
            ]
            if captured.graph.concrete and start:
                captured, program = self.program(part_args, part_kwargs)
            try:
                part = METHODS[self.method].run(self, captured, program, part_args, part_kwargs, part_targets)
            except ConservationError:
                _refuse_infinite_weights(self.model)
                raise
            parts.append(part)
        return [_join([part[i] for part in parts], inputs) for i in range(len(targets))]

    def program(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Captured, Program]:
        """The captured graph for inputs like these, and its plan."""
        captured = captured_graph(self.model, args, kwargs, self.composite.fold)
        with captured.lock:
            key = (self.composite, self.composite.name)
            if key not in captured.programs:
                plan = assign(captured.graph, captured.facts, self.composite)
                captured.programs[key] = prepare(captured.graph, captured.facts, plan)
            program = captured.programs[key]
        self._plan = program.plan
        return captured, program

    def program_of_call(self, args: tuple[Any, ...]) -> tuple[Captured, Program]:
        """The graph of one call on one sample whose tensors have any shape, and its plan."""
        assert isinstance(self.model, torch.nn.Module)
        graph = canonise(trace(self.model, args, {}), self.composite.fold)
        captured = Captured(graph, analyse(graph, OPS))
        return captured, prepare(graph, captured.facts, assign(graph, captured.facts, self.composite))


def composite_of(rules: Any) -> Composite:
    """The composite that `rules` means: a preset's name, a rule for all linear operations, or a composite itself."""
    if isinstance(rules, str):
        return named(rules)
    if isinstance(rules, Rule):
        return Composite([("weighted", rules)], name=type(rules).__name__)
    if isinstance(rules, Composite):
        return rules
    raise InvalidInput(
        f"rules: {rules!r} is neither a preset's name, a rule nor a Composite\n"
        "  do: give a name of relprop.presets(), a rule such as relprop.rules.Gamma(0.25), or a relprop.Composite"
    )


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's call."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def _check_model(model: Any) -> None:
    if not any(accepts(model) for accepts, _ in capturing.FRONTENDS):
        raise InvalidInput(
            f"model: {model!r} is not something relprop can read\n"
            "  do: give a torch.nn.Module, a torch.export.ExportedProgram or the path of a saved .pt2 file"
        )
    if isinstance(model, torch.nn.Module):
        capturing.check_module(model)
        for path, module in model.named_modules():
            if module.training:
                where = f"its module {path!r} is" if path else "it is"
                raise InvalidInput(
                    f"model: {where} in training mode, where dropout and batch statistics make a score of chance\n"
                    "  do: call model.eval() first"
                )


def check_inputs(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `InvalidInput` for what is no tensor, empty, not finite, on another device or of another type than the model."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        given = type(leaves[0]).__name__ if leaves else "nothing"
        raise InvalidInput(f"inputs: {given} holds no tensor\n  do: give a torch.Tensor with the batch first")
    batch = capturing.batch_size((args, kwargs))
    weight = next((w for w in _weights(model) if w.is_floating_point()), None)
    for tensor in tensors:
        if tensor.numel() == 0 or batch == 0:
            raise InvalidInput(
                f"inputs: an empty batch, shape {tuple(tensor.shape)}\n  do: give one sample or more"
            )
        if weight is not None and tensor.device != weight.device:
            raise InvalidInput(
                f"inputs: on {tensor.device}, but the model is on {weight.device}\n"
                f"  do: move one of them: inputs.to({str(weight.device)!r})"
            )
        if tensor.is_meta:
            raise InvalidInput("inputs: on the device meta, without values\n  do: move them to a real device")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise InvalidInput(
                f"inputs: {count} of {tensor.numel()} values are NaN or infinite\n"
                "  do: find where they come from, or replace them: torch.nan_to_num(inputs)"
            )
        if weight is not None and tensor.is_floating_point() and tensor.dtype != weight.dtype:
            raise InvalidInput(
                f"inputs: of type {tensor.dtype}, but the model's weights are {weight.dtype}\n  do: inputs.to({weight.dtype})"
            )


def _weights(model: Any) -> Iterable[Tensor]:
    return model.parameters() if isinstance(model, torch.nn.Module) else model.state_dict.values()


def captured_graph(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fold: bool) -> Captured:
    """The canonised graph of the model for inputs of these shapes and types, captured at most once.

    A concrete graph holds for one sample: it is recorded anew each time, from the first sample of these inputs.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    batch = capturing.batch_size((args, kwargs))
    inputs = tuple(signature_of(leaf, batch) for leaf in leaves)
    with LOCK:
        known = _CACHE.setdefault(model, {})
        key = (structure_of(model), str(spec), inputs, fold)
        captured = known.get(key)
        if captured is None or captured.graph.concrete:
            raw = _capture(model, args, kwargs, again=captured is not None)
            captured = _analysed(canonise(raw, fold))
            if not _verified(model, captured, args, kwargs):
                captured = _analysed(
                    canonise(raw, fold=False)
                )  # folding may move scores that hang on rounding
                if not fold or not _verified(model, captured, args, kwargs):
                    raise CaptureError(
                        "the captured graph does not compute what the model computes: its forward pass depends on"
                        " chance, on the values of the input or on state outside its parameters\n"
                        "  do: make the forward pass a function of its inputs and weights"
                    )
            known[key] = captured
        return captured


def _capture(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], again: bool) -> Graph:
    try:
        return capturing.capture(model, args, kwargs, again)
    except (CaptureError, UnsupportedOperation):
        if isinstance(model, torch.nn.Module):
            _run_eagerly(model, *capturing.samples((args, kwargs), 1))
        raise


def _run_eagerly(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own output. Raises `InvalidInput` where the model itself fails on these inputs."""
    try:
        return run_isolated(model, args, kwargs)
    except Exception as error:
        shapes = ", ".join(
            str(tuple(t.shape)) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        )
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            f"inputs: the model itself fails on one sample of shape {shapes}: {first}\n"
            "  do: give inputs with which model(inputs) runs"
        ) from error


def _analysed(graph: Graph) -> Captured:
    """The graph with its facts. Raises `UnsupportedOperation` before anything is computed."""
    captured = Captured(graph, analyse(graph, OPS))
    refuse(graph, captured.facts)
    return captured


def _verified(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the graph computes what the model computes; asked once, after capture."""
    if not isinstance(model, torch.nn.Module):
        return True
    count = 2 if captured.graph.batched else 1
    args, kwargs = capturing.samples((args, kwargs), count)
    expected = _run_eagerly(model, *pytree.tree_map(_copy, (args, kwargs)))
    program = prepare(captured.graph, captured.facts, Plan((), Composite()))
    with quietly():  # a graph that draws random numbers leaves the caller's as they were
        values = record(program, leaves_of(model, captured.graph, args, kwargs), Weights())
    for ref, value in zip(
        captured.graph.outputs(),
        (v for v in pytree.tree_leaves(expected) if isinstance(v, Tensor)),
        strict=False,
    ):
        found = values[ref.name] if ref.index is None else values[ref.name][ref.index]
        loose = 5e-2 if value.dtype in HALF else 1e-3 if value.dtype == torch.float32 else 1e-6
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        if found.shape != value.shape or not torch.allclose(
            found, value, atol=loose * scale, rtol=loose, equal_nan=True
        ):
            return False
    return True


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def leaves_of(model: Any, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The values of inputs, weights (read live) and constants by node name."""
    flat = pytree.tree_leaves((args, kwargs))
    values: dict[str, Any] = {}
    with LOCK:
        for node in graph.nodes:
            if node.kind == "input":
                values[node.name] = _ordinary(flat[int(node.origin)])
            elif node.kind == "weight":
                values[node.name] = _ordinary(weight_of(model, node.origin))
            elif node.kind == "constant":
                values[node.name] = graph.constants[node.origin]
    return values


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor without its history; one made in inference mode as a copy, which autograd takes."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def weight_of(model: Any, path: str) -> Tensor:
    """The parameter or buffer at a path of the model, as it is now."""
    if isinstance(model, ExportedProgram):
        found = model.state_dict.get(path)
        return model.constants[path] if found is None else found  # type: ignore[no-any-return]
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)  # type: ignore[no-any-return]


def weights_by_node(graph: Graph, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights among the values."""
    return {node.name: values[node.name] for node in graph.nodes if node.kind == "weight"}


def fitting(graph: Graph, inputs: Any) -> int:
    """How many samples fit half of the free memory, by the sizes of all values of the graph."""
    per_sample = 0
    for node in graph.nodes:
        for meta in node.meta if isinstance(node.meta, tuple) else (node.meta,):
            if node.kind == "call" and isinstance(meta, Meta) and meta.batch:
                size = 4
                for length in meta.shape:
                    size *= length
                per_sample += size // 2
    device = next(leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return max(1, int(free_memory(device) / 2 / max(1, 2 * per_sample)))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 * 1024**3


def slice_batch(structure: Any, batch: int, start: int, stop: int) -> Any:
    """The samples from start to stop of every tensor that has the batch first."""
    if start == 0 and stop == batch:
        return structure

    def take(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
        return leaf[start:stop] if batched else leaf

    return pytree.tree_map(take, structure)


def slice_target(target: Target, batch: int, start: int, stop: int, rank: int) -> Target:
    """The part of a target that belongs to the samples from start to stop; `rank`: the output's dimensions."""
    if start == 0 and stop == batch:
        return target
    if hasattr(target, "tolist") and not isinstance(target, Tensor):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor) and target.is_floating_point() and target.dim() != rank:
        return target  # weights for all samples
    if isinstance(target, Tensor) and target.dim() and target.shape[0] == batch:
        return target[start:stop]
    if isinstance(target, list) and len(target) == batch:
        return target[start:stop]
    return target


def _rank(graph: Graph) -> int:
    """The number of dimensions of the graph's first output."""
    nodes = {node.name: node for node in graph.nodes}
    metas = (meta_of(nodes, ref) for ref in graph.outputs())
    return next((len(meta.shape) for meta in metas if meta is not None), 0)


def _join(parts: list[Explanation], inputs: Inputs) -> Explanation:
    first = parts[0]

    def cat(pieces: list[Any]) -> Any:
        return torch.cat(pieces) if isinstance(pieces[0], Tensor) and pieces[0].dim() else pieces[0]

    def merge(structures: list[Any]) -> Any:
        flat = [pytree.tree_flatten(structure) for structure in structures]
        return pytree.tree_unflatten(
            [cat(list(column)) for column in zip(*(f[0] for f in flat), strict=True)], flat[0][1]
        )

    if len(parts) == 1:
        relevance, output, target, score, audit = (
            first.relevance,
            first.output,
            first.target,
            first.score,
            first.audit,
        )
    else:
        relevance, output = (
            _of_inputs(merge([p.relevance for p in parts]), parts, inputs),
            merge([p.output for p in parts]),
        )
        target = (
            cat([p.target for p in parts])
            if isinstance(first.target, Tensor) and first.target.shape[:1] == first.score.shape
            else first.target
        )
        score = torch.cat([p.score for p in parts])
        audits = [p.audit for p in parts if p.audit is not None]
        audit = accounts.join(audits) if audits else None
    at = None if first._at is None else _at_of([p._at for p in parts])
    return Explanation(relevance, output, target, score, audit, inputs, first.plan, first.method, at)


def _of_inputs(relevance: Any, parts: list[Explanation], inputs: Inputs) -> Any:
    """The joined relevance, with that of an input which all samples share summed instead of set side by side."""
    given = iter(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    columns = zip(*(pytree.tree_leaves(part.relevance) for part in parts), strict=True)
    joined, spec = pytree.tree_flatten(relevance)
    result: list[Any] = []
    for whole, pieces in zip(joined, columns, strict=True):
        if isinstance(whole, Tensor) and whole.shape != next(given).shape:
            whole = torch.stack(pieces).sum(0)
        result.append(whole)
    return pytree.tree_unflatten(result, spec)


def _at_of(functions: list[Any]) -> Callable[[str], Any]:
    def at(path: str) -> Any:
        found = [function(path) for function in functions]
        if isinstance(found[0], tuple):
            return tuple(torch.cat(list(column)) for column in zip(*found, strict=True))
        return torch.cat(found)

    return at


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass and how to start a walk from it."""

    values: dict[str, Any]
    output: Any
    batch: int


def forward(
    explainer: Explainer, captured: Captured, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Forward:
    """Run the graph on one batch and keep what the walk reads."""
    leaves = leaves_of(explainer.model, captured.graph, args, kwargs)
    captured.store.fresh(weights_by_node(captured.graph, leaves))
    values = record(program, leaves, captured.store)

    def value(ref: Any) -> Any:
        if not isinstance(ref, Ref):
            return ref
        held = values[ref.name]
        return held if ref.index is None else held[ref.index]

    output = pytree.tree_map(value, captured.graph.output, is_leaf=lambda leaf: isinstance(leaf, Ref))
    return Forward(values, output, capturing.batch_size((args, kwargs)))


def start(
    explainer: Explainer, captured: Captured, passed: Forward, target: Target
) -> tuple[dict[Ref, Tensor], Tensor, Any, list[accounts.Entry]]:
    """The relevance of the model's outputs that starts the walk, the score, the resolved target, and the accounts so far."""
    if callable(target) and not isinstance(target, Tensor):
        return _start_callable(explainer, captured, passed, target)
    ref, output = main_output(captured.graph.output), main_output(passed.output)
    if not output.is_floating_point():
        raise InvalidInput(
            f"target: the output is of type {output.dtype}, not a real number\n"
            "  do: explain the scores before the model rounds or compares them"
        )
    if output.dim() == 0 or output.shape[0] != passed.batch:
        raise InvalidInput(
            f"target: the output has shape {tuple(output.shape)} for {passed.batch} samples\n  do: give a model whose output has the batch first"
        )
    _check_finite(explainer.model, output)
    weights, resolved = weights_of(target, output, passed.batch)
    if ref not in captured.facts.data:
        raise InvalidInput(
            "model: the output does not depend on the inputs through operations that carry relevance\n"
            "  do: check that model(inputs) changes with its inputs (rounding and comparisons carry nothing)"
        )
    seed = weights * output
    seed = seed.float() if seed.dtype in HALF else seed
    return {ref: seed}, seed.flatten(1).sum(1) if seed.dim() > 1 else seed, resolved, []


def _check_finite(model: Any, output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        _refuse_infinite_weights(model)
        raise InvalidInput(
            "model: its output is NaN or infinite for these inputs\n  do: check the scale of the inputs, or use float64"
        )


def _refuse_infinite_weights(model: Any) -> None:
    """Raise `InvalidInput` that names a weight with NaN or infinity."""
    if isinstance(model, torch.nn.Module):
        for path, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise InvalidInput(
                    f"model: its weight {path!r} holds NaN or infinity\n  do: load or train the model again"
                )


def _start_callable(
    explainer: Explainer, captured: Captured, passed: Forward, target: Callable[[Any], Tensor]
) -> tuple[dict[Ref, Tensor], Tensor, Any, list[accounts.Entry]]:
    """A callable target is captured like a model and walked first."""
    leaves, spec = pytree.tree_flatten(passed.output)
    refs = pytree.tree_leaves(captured.graph.output, is_leaf=lambda leaf: isinstance(leaf, Ref))
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            _check_finite(explainer.model, leaf)
    module = Score(target, spec)
    expected = module.score_of(leaves, passed.batch)
    kinds = [
        (where, rule) for where, rule in explainer.composite.rules if where == "weighted" or where in KINDS
    ]
    scorer = Explainer(module, Composite(kinds, explainer.composite.fold))
    args = (torch.empty(passed.batch), *leaves)
    scored, program = scorer.program(args, {}) if captured.graph.batched else scorer.program_of_call(args)
    result = forward(scorer, scored, program, args, {})
    score = result.output
    ref = main_output(scored.graph.output)
    if ref not in scored.facts.data:
        raise InvalidInput(
            "target: the callable's score does not depend on the model's output\n  do: compute it from the output"
        )
    if score.shape != expected.shape or not torch.allclose(score, expected, rtol=1e-3, atol=1e-5):
        raise InvalidInput(
            "target: the callable means something else for a batch than for one sample (it uses its size)\n"
            "  do: write it for any number of samples, or explain with batch_size=1"
        )
    seed = score.float() if score.dtype in HALF else score
    way = walk(program, result.values, {ref: seed}, scored.store, passed.batch, explainer.audit)
    origins = {node.name: int(node.origin) for node in scored.graph.nodes if node.kind == "input"}
    seeds: dict[Ref, Tensor] = {}
    for name, relevance in way.inputs.items():
        place = refs[origins[name] - 1]
        seeds[place] = seeds[place] + relevance if place in seeds else relevance
    return {r: s for r, s in seeds.items() if r in captured.facts.data}, seed, target, way.entries


def module_outputs(graph: Graph, facts: Facts) -> dict[str, list[Ref]]:
    """For each call of a module, the data values computed in it that are read outside it: its outputs."""
    readers = consumers(graph)
    calls = {node.name: frozenset(node.calls) for node in graph.nodes}
    found: dict[str, list[Ref]] = {}
    for node in graph.nodes:
        for ref in values_of(node):
            if node.kind != "call" or ref not in facts.data:
                continue
            for call in dict.fromkeys(node.calls):  # a folded operation names the modules around it twice
                if any(name == "output" or call not in calls[name] for name in readers.get(ref, ())):
                    found.setdefault(call, []).append(ref)
    return found


def places(captured: Captured, path: str) -> list[list[Ref]]:
    """The values that are the output of the module at a path, a list for each of its calls."""
    outputs = module_outputs(captured.graph, captured.facts)
    calls = [call for call in outputs if call == path or ("@" not in path and path_of(call) == path)]
    if not calls:
        known = sorted({path_of(call) for call in outputs if call})
        near = [name for name in known if name.startswith(path.split(".")[0])] or known
        raise InvalidInput(
            f"at: no relevance at {path!r}: there is no such module, or it computes nothing of its own (an identity, an inactive dropout)\n"
            f"  do: one of {', '.join(near[:12])}{' …' if len(near) > 12 else ''}"
        )
    return [outputs[call] for call in calls]
