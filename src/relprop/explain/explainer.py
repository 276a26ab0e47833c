"""`explain` and `Explainer`: capture, canonise, analyse, plan, walk and audit, in that order."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from relprop.engine import capture as capturing
from relprop.engine.analyse import analyse
from relprop.engine.batch import batch_size, states_of
from relprop.engine.canonise import canonise
from relprop.engine.graph import Graph
from relprop.engine.isolate import LOCK
from relprop.engine.modules import unwrapped
from relprop.engine.ops import OPS
from relprop.engine.plan import Composite, Plan, assign
from relprop.engine.presets import named
from relprop.engine.propagate import Program, prepare
from relprop.engine.rules import Rule
from relprop.engine.tape import trace
from relprop.errors import CaptureError, ConservationError, InvalidInput, UnsupportedOperation
from relprop.explain.batches import fitting, join, rank_of, sizes_of, slice_batch, slice_target
from relprop.explain.captured import Captured, captured_graph, check_batch, check_count, run_eagerly
from relprop.explain.conditions import Condition
from relprop.explain.finite import refuse_output
from relprop.explain.inputs import (
    Inputs,
    arguments,
    check_inputs,
    check_model,
    check_relevance,
    refuse_infinite_weights,
)
from relprop.explain.steps import SamplesFirst, exchanged, samples_first, with_steps_first
from relprop.explanation import Explanation
from relprop.targets import Target
from relprop.text import Asked, Tokenised, labels_of, opened, per_token, reading

if TYPE_CHECKING:
    from relprop.classical import Estimator

Part = tuple[Captured, Program, tuple[Any, ...], dict[str, Any], list[Target]]
"""A part of a batch: its graph, its program, its arguments and its targets."""


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
        model: a `torch.nn.Module` in eval mode, a `torch.export.ExportedProgram` or the path of a saved one (`.pt2`);
            an ONNX file, a Keras 3 model on the torch backend, TorchScript (docs/models.md); a pipeline of
            transformers, or a folder saved by its `save_pretrained`. It is never changed.
        inputs: a tensor or array (B, …), a tuple of them (positional arguments) or a dict (keyword arguments); a text or
            a list of them where a tokenizer is known.
        target: None for the class with the largest output, an int or B of them, a tuple (an index into an output of
            more than two dimensions), a float tensor of the output's shape (weights of a sum of outputs), a
            `relprop.targets.contrast(a, b)`, or a callable that takes the output and returns one score a sample, (B,).
            Classes may be given by the names of the model's config. For a text and a model that writes, a token at the
            last position: its id or its text, or (position, token); None is the most likely one.
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


class Explainer:
    """Explains one model many times: the model is captured and planned once for each kind of input.

    Args:
        model, rules, method: as for `explain`.
        example: an input to capture and plan at once, so that `plan` can be printed before anything is explained. That the
            captured graph computes what the model computes is checked before the plan is first looked at, or anything explained.
        audit: keep the account and check it (default). Without it `Explanation.audit` is None.
        batch_size: the number of samples that are walked at a time; by default as many as fit the free memory.
        tokenizer: what turns texts into token ids and names tokens: the model's own from transformers (a pipeline or
            a saved folder brings it), a `relprop.text.Vocabulary`, or a function from a text to ids and offsets.
        options: those of the method (steps, samples, window, layer, seed, …: docs/methods.md).

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
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        from relprop.methods import METHODS

        if method not in METHODS:
            raise InvalidInput(f"method: {method!r} is unknown\n  do: one of {', '.join(METHODS)}")
        for name in options:
            if name not in METHODS[method].options:
                known = ", ".join((*METHODS[method].options, "audit", "batch_size", "tokenizer"))
                raise InvalidInput(
                    f"{name}: no option of the method {method!r}\n"
                    f"  do: its options are {known}; a rule's own go into it, such as rules=relprop.rules.Epsilon(1e-3)"
                )
        if not METHODS[method].ruled and not (isinstance(rules, str) and rules == "auto"):
            ruled = " or ".join(repr(name) for name, row in METHODS.items() if row.ruled)
            raise InvalidInput(
                f"rules: the method {method!r} has none, and {rules if isinstance(rules, str) else 'what was given'} would count for nothing\n"
                f"  do: leave rules out, or use method={ruled}"
            )
        if batch_size is not None and batch_size < 1:
            raise InvalidInput(
                f"batch_size: {batch_size} is below 1\n  do: give the number of samples that are walked at a time"
            )
        model, self.tokenizer = opened(model, tokenizer)
        self.estimator = estimator_of(model)
        if self.estimator is not None:
            model = self.estimator.network
        self.given = model  # kept alive: what stands for it may refer to it weakly
        self.model = capturing.load(model) if isinstance(model, (str, Path)) else unwrapped(model)
        with LOCK:
            check_model(self.model)
        given = self.estimator
        self.composite = composite_of(rules) if given is None else given.composite(rules, composite_of)
        self.method = method
        self.options = {**METHODS[method].options, **options}
        self.audit = audit
        self.batch_size = batch_size
        self.conditions: tuple[Condition | None, ...] = ()
        self._plan: Plan | None = None
        self._unchecked: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the example's arguments
        self._samples_first: SamplesFirst | None = None
        if example is not None:
            first = example if given is None else next(given.read(example, self.composite).parts())[2]
            args, kwargs = arguments(first)
            with LOCK:
                check_inputs(self.model, args, kwargs)
            self.program(args, kwargs, check=False)
            self._unchecked = args, kwargs

    def __repr__(self) -> str:
        model = self.model if self.estimator is None else self.estimator.fitted
        rules = f", rules={self.composite.name!r}" if self.composite.name else ""
        return f"<Explainer of {type(model).__name__}: method={self.method!r}{rules}>"

    @property
    def plan(self) -> Plan:
        """Every operation that relevance passes, its rule and why. Raises `InvalidInput` before any input is known, and for a
        method without rules."""
        from relprop.methods import METHODS

        if not METHODS[self.method].ruled:
            raise InvalidInput(f"plan: the method {self.method!r} has no rules\n  do: use method='lrp'")
        if self._unchecked is not None:
            self.program(*self._unchecked)
        if self._plan is None:
            raise InvalidInput(
                "plan: the model has not been captured yet\n  do: give example= an input, or explain one"
            )
        return self._plan

    def __call__(self, inputs: Inputs, target: Target = None) -> Explanation:
        """Explain one batch. See `explain`."""
        return self.explain_targets(inputs, [target])[0]

    def conditional(
        self, inputs: Inputs, target: Target = None, *, conditions: Sequence[Condition | None]
    ) -> list[Explanation]:
        """One explanation for each of several conditions on the way of relevance, from one forward pass.

        A `Condition` says which channels, neurons, tokens or heads of some modules may pass relevance on (Achtibat et
        al. 2023); None is no condition. The relevance that a condition stops is in its audit as "masked". Walks share
        the way from the output down to the first of their modules.
        """
        if self.method != "lrp":
            raise InvalidInput(f"conditions: the method {self.method!r} knows none\n  do: use method='lrp'")
        if not conditions:
            raise InvalidInput("conditions: the list is empty\n  do: give one condition or more")
        asked = copy.copy(self)
        asked.conditions = tuple(conditions)
        return asked.explain_targets(inputs, [target] * len(conditions))

    @torch.inference_mode(False)  # the walk forms adjoints by differentiating single operations
    def explain_targets(self, inputs: Inputs, targets: Sequence[Target]) -> list[Explanation]:
        """One explanation for each of several targets of the same inputs, from one forward pass."""
        if not isinstance(targets, (Sequence, Tensor, np.ndarray)) or isinstance(targets, str):
            raise InvalidInput(
                f"targets: {targets!r} is no list of targets\n  do: give a list, one explanation for each: [0, 3]"
            )
        if self.estimator is not None:
            return self._of_estimator(self.estimator, inputs, targets)
        return self._explained(inputs, targets)

    def _of_estimator(
        self, estimator: Estimator, inputs: Inputs, targets: Sequence[Target]
    ) -> list[Explanation]:
        """The explanations of an estimator's score, which sparse rows reach a part at a time."""
        from relprop.classical import listed_once

        given = estimator.read(inputs, self.composite)
        resolved = [estimator.target(target, given.batch) for target in targets]
        own = estimator.own(given)
        parts: list[list[Explanation]] = []
        for start, stop, args in given.parts():
            rank = rank_of(self.program(args, {})[0].graph)
            asked = [slice_target(target, given.batch, start, stop, rank) for target in resolved]
            found = self._explained(args, asked)
            if given.dense is None:
                found = [listed_once(one, given.sparse[start:stop]) for one in found]
            parts.append(found)
        whole = args if given.dense is not None else (torch.from_numpy(given.sparse.data),)
        results = [join([part[i] for part in parts], whole) for i in range(len(targets))]
        estimator.check(own, results[0].output)
        return [estimator.finished(one, given, target) for one, target in zip(results, resolved, strict=True)]

    def _explained(self, inputs: Inputs, targets: Sequence[Target]) -> list[Explanation]:
        """The explanations of what the module itself takes."""
        from relprop.methods import METHODS

        if not len(targets):
            raise InvalidInput("targets: the list is empty\n  do: give one target or more")
        text, args, kwargs = self.read(inputs)
        known: tuple[Captured, Program] | None = None
        if self._samples_first is None and text is None:
            try:
                known = self.program(args, kwargs)
            except (CaptureError, InvalidInput, UnsupportedOperation):
                self._samples_first = samples_first(self.model, args, kwargs)
                if self._samples_first is None:
                    raise
        if self._samples_first is not None:
            return self._of_steps_first(self._samples_first, args, kwargs, targets, inputs)
        parts: list[list[Explanation]] = []
        for part in self.parts(args, kwargs, targets, text, known):
            try:
                parts.append(METHODS[self.method].run(self, part))
            except ConservationError:
                refuse_infinite_weights(self.model)
                raise
            except (IndexError, RuntimeError):
                # a sample other than the first may be one that the model does not take
                if isinstance(self.model, torch.nn.Module):
                    run_eagerly(self.model, *part[2:4])
                raise
        joined = [join([part[i] for part in parts], (args, kwargs)) for i in range(len(targets))]
        for whole in joined:
            if whole.audit is None:  # an audit would not close
                check_relevance(whole.relevance, self.method)
        return [_of_text(whole, text, inputs) for whole in joined]

    def _of_steps_first(
        self,
        model: SamplesFirst,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: Sequence[Target],
        inputs: Inputs,
    ) -> list[Explanation]:
        """The explanations of a model that takes steps before samples, in the form of the inputs."""
        asked = copy.copy(self)
        asked.model, asked._samples_first = model, None
        args, kwargs = exchanged((args, kwargs), model.turned)
        found = asked._explained(kwargs or args, targets)
        self._plan, self._unchecked = asked._plan, None
        return [with_steps_first(one, model, inputs) for one in found]

    def read(self, inputs: Inputs) -> tuple[Tokenised | None, tuple[Any, ...], dict[str, Any]]:
        """The text of the inputs, if they are one, and the arguments of the model's call, checked."""
        text = reading(self.model, inputs, self.tokenizer)
        args, kwargs = arguments(inputs if text is None else text.inputs)
        with LOCK:  # another thread may be capturing this model, its parameters swapped for the moment
            check_model(self.model)
            check_inputs(self.model, args, kwargs)
        return text, args, kwargs

    def parts(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: Sequence[Target],
        text: Tokenised | None = None,
        known: tuple[Captured, Program] | None = None,
    ) -> Iterator[Part]:
        """A batch in parts that fit the memory: of each its graph, its program, its arguments and its targets.

        `known`: what `program` has just given for these arguments.
        """
        captured, program = self.program(args, kwargs) if known is None else known
        targets = [self.asked(captured.graph, text).resolve(target) for target in targets]
        batch = batch_size((args, kwargs))
        size = batch if self.batch_size is None else self.batch_size
        if not captured.graph.batched:
            size = 1
        elif self.batch_size is None:
            size = min(batch, fitting(captured, (args, kwargs)))
        try:
            check_batch(self.model, captured, args, kwargs)
        except CaptureError:
            refuse_output(self.model, captured, args, kwargs)  # beside NaN nothing is told of samples
            raise
        states = states_of(self.model) if size < batch else frozenset()
        for count in {min(size, batch), batch % size or size}:  # of all parts, before the first is explained
            check_count(
                self.model, captured, *slice_batch((args, kwargs), batch, 0, min(count, batch), states)
            )
        for start in range(0, batch, size):
            part_args, part_kwargs = slice_batch(
                (args, kwargs), batch, start, min(start + size, batch), states
            )
            part_targets = [
                slice_target(target, batch, start, min(start + size, batch), rank_of(captured.graph))
                for target in targets
            ]
            if captured.graph.concrete and start:
                captured, program = self.program(part_args, part_kwargs)
            yield captured, program, part_args, part_kwargs, part_targets

    def asked(self, graph: Graph, text: Tokenised | None) -> Asked:
        """What targets by name and by position in a text are resolved by."""
        masked = "MaskedLM" in type(self.model).__name__
        return Asked(labels_of(self.model), sizes_of(graph), text, self.tokenizer, masked)

    def program(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], check: bool = True
    ) -> tuple[Captured, Program]:
        """The captured graph for inputs like these, and its plan; without `check` it is only made ready."""
        captured = captured_graph(self.model, args, kwargs, self.composite.fold, check)
        with captured.lock:
            key = (self.composite, self.composite.name)
            if key not in captured.programs:
                plan = assign(captured.graph, captured.facts, self.composite)
                captured.programs[key] = prepare(captured.graph, captured.facts, plan)
            program = captured.programs[key]
        self._plan, self._unchecked = program.plan, None
        return captured, program

    def program_of_call(self, args: tuple[Any, ...]) -> tuple[Captured, Program]:
        """The graph of one call on one sample whose tensors have any shape, and its plan."""
        assert isinstance(self.model, torch.nn.Module)
        graph = canonise(trace(self.model, args, {}), self.composite.fold)
        captured = Captured(graph, analyse(graph, OPS))
        return captured, prepare(graph, captured.facts, assign(graph, captured.facts, self.composite))


def _of_text(explanation: Explanation, text: Tokenised | None, inputs: Any) -> Explanation:
    """The explanation with the inputs as the caller gave them, and the tokens of a text.

    Relevance of strings is that of their tokens (B, T), or a dict of it where the model reads and writes.
    """
    relevance = explanation.relevance
    if text is not None and inputs is not text.inputs:
        values = {source: per_token(relevance, source) for source in text.sources()}
        relevance = values if len(values) > 1 else next(iter(values.values()))
        inputs = text.texts if isinstance(inputs, Tokenised) else inputs
    return dataclasses.replace(explanation, relevance=relevance, inputs=inputs, text=text)


def estimator_of(model: Any) -> Estimator | None:
    """A fitted estimator with its network; None for what is a network already, or the file of one."""
    if isinstance(model, (torch.nn.Module, ExportedProgram, str, Path)):
        return None
    from relprop.classical import Estimator, is_estimator, rewritten

    return model if isinstance(model, Estimator) else rewritten(model) if is_estimator(model) else None


def composite_of(rules: Any) -> Composite:
    """The composite that `rules` means: a preset's name, a rule for all linear operations, or a composite itself."""
    if isinstance(rules, str):
        return named(rules)
    if isinstance(rules, Rule):
        return Composite([("weighted", rules)], name=type(rules).__name__)
    if isinstance(rules, Composite):
        return rules
    if isinstance(rules, type) and issubclass(rules, Rule):
        raise InvalidInput(
            f"rules: {rules.__name__} is a class\n  do: give an instance of it, relprop.rules.{rules.__name__}(), or a relprop.Composite"
        )
    raise InvalidInput(
        f"rules: {rules!r} is neither a preset's name, a rule nor a Composite\n"
        "  do: give a name of relprop.presets(), a rule such as relprop.rules.Gamma(0.25), or a relprop.Composite"
    )
