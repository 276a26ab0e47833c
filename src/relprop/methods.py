"""The methods of explanation: `METHODS` is the table from name to function; a new one is a function and a row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop import deeplift, gradients, patterns, sampling
from relprop.contextual import contextual_decomposition
from relprop.contrast import contrasted
from relprop.differentiable import Differentiable, differentiable, inputs_behind
from relprop.engine import audit as accounts
from relprop.engine.graph import Ref
from relprop.engine.propagate import (
    HALF,
    Mask,
    Walk,
    segments,
    walk,
    walk_by_segments,
)
from relprop.errors import InvalidInput
from relprop.explain import Captured, Explainer, Forward, forward, start
from relprop.explain.again import Again, Inside, masks
from relprop.explain.explainer import Part
from relprop.explain.together import Wanted, walks
from relprop.explanation import Explanation
from relprop.targets import main_output, weights_of

Start = tuple[dict[Ref, Tensor], Tensor, Any, list[accounts.Entry]]
"""What `start` returns: the outputs' relevance, the score, the resolved target, the accounts so far."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row: what the method is, its function of an explainer and a part of a batch, and its options.

    `options`: their names and defaults; what the caller gave is in `explainer.options`. `ruled`: whether relevance goes
    by the rules that the caller gave.
    """

    about: str
    run: Callable[[Explainer, Part], list[Explanation]]
    options: Mapping[str, Any] = field(default_factory=dict)
    ruled: bool = False


def lrp(explainer: Explainer, part: Part) -> list[Explanation]:
    """Layer-wise relevance propagation by the explainer's plan; one walk a target, one forward pass for all.

    Where the explainer has conditions, there is one for each target, and the targets are all the same: the walks part
    where the first of their conditions masks something.
    """
    captured, program, args, kwargs, targets = part
    autocast, checkpoints, backend = _settings(explainer, captured)
    parts = segments(program) if checkpoints else None
    passed = forward(explainer, captured, program, args, kwargs, parts)
    if explainer.conditions:
        return _conditional(explainer, part, passed)
    begun = [start(explainer, captured, passed, target) for target in targets]
    store, audit = captured.store, explainer.audit
    if parts is not None:
        ways = [
            walk_by_segments(program, parts, passed.values, one[0], store, passed.batch, audit, autocast)
            for one in begun
        ]
    elif backend is not None:
        ways = _compiled(explainer, part, passed, [one[0] for one in begun], backend)
    elif len(targets) == 1:
        ways = [walk(program, passed.values, begun[0][0], store, passed.batch, audit, release=True)]
    else:
        ways = walks(explainer, part, passed, [Wanted(one[0]) for one in begun])
    return [
        _explanation(Again(explainer, captured, program, args, kwargs, target, one[1]), passed, one, way)
        for target, one, way in zip(targets, begun, ways, strict=True)
    ]


def _compiled(
    explainer: Explainer, part: Part, passed: Forward, seeds: list[dict[Ref, Tensor]], backend: str
) -> list[Walk]:
    """The walks of several targets, one after the other, by one compiled function."""
    from relprop.engine.propagate.compiled import CompiledWalks  # not loaded with the package

    captured, program, args, kwargs, _ = part
    with captured.lock:
        walks_of = captured.compiled.setdefault(id(program), CompiledWalks())

    def again() -> dict[str, Any]:
        return forward(explainer, captured, program, args, kwargs).values

    ways = []
    for place, seed in enumerate(seeds):
        values = passed.values if place == len(seeds) - 1 else dict(passed.values)
        ways.append(
            walks_of.walk(
                program,
                values,
                seed,
                captured.store,
                passed.batch,
                explainer.audit,
                again=again,
                backend=backend,
            )
        )
    return ways


def _settings(explainer: Explainer, captured: Captured) -> tuple[torch.dtype | None, bool, str | None]:
    """The options autocast and checkpoints, and what compiles. Raises `InvalidInput` where they cannot be had."""
    autocast, checkpoints = explainer.options.get("autocast"), bool(explainer.options.get("checkpoints"))
    if autocast not in (None, *HALF):
        raise InvalidInput(f"autocast: {autocast!r}\n  do: give torch.bfloat16 or torch.float16")
    if autocast is not None and precision_of(captured) != torch.float32:
        raise InvalidInput(
            f"autocast: the model computes in {precision_of(captured)}\n  do: leave it out, or give a model in float32"
        )
    if checkpoints and explainer.conditions:
        raise InvalidInput("checkpoints: not together with conditions\n  do: leave one of them out")
    return autocast, checkpoints, _backend(explainer, captured)


def _backend(explainer: Explainer, captured: Captured) -> str | None:
    """What the option compile asks for; None without it. Raises `InvalidInput` where it cannot be had."""
    given = explainer.options.get("compile")
    if not given:
        return None
    from relprop.engine.propagate.compiled import BACKENDS  # not loaded with the package

    if given is not True and given not in BACKENDS:
        raise InvalidInput(f"compile: {given!r}\n  do: give True or False")
    others = {
        "checkpoints": explainer.options.get("checkpoints"),
        "conditions": explainer.conditions,
    }
    for name in (name for name, asked in others.items() if asked):
        raise InvalidInput(f"compile: not together with {name}\n  do: leave one of them out")
    if captured.graph.concrete:
        raise InvalidInput(
            "compile: this model is captured anew for every input, because its forward pass hangs on values\n"
            "  do: leave compile out"
        )
    return "inductor" if given is True else str(given)


def _conditional(explainer: Explainer, part: Part, passed: Forward) -> list[Explanation]:
    """An explanation for each of the explainer's conditions, of one target.

    All walks share the way from the output down to the first value that a condition masks: the conditions are sorted by
    that, and those that part at the same place go on together.
    """
    captured, program, args, kwargs, (target, *_) = part
    begun = start(explainer, captured, passed, target)
    every = [masks(captured, explainer, condition, passed.batch) for condition in explainer.conditions]
    order = {node.name: -i for i, node in enumerate(captured.graph.nodes)}  # in which a walk meets the nodes
    tops = [min((ref.name for ref in found), key=order.__getitem__, default=None) for found in every]
    trunk, seeds, ways = Walk(), begun[0], dict[int, Walk]()
    for top in sorted(set(tops), key=lambda top: 1 if top is None else order[top]):
        trunk = walk(
            program,
            passed.values,
            seeds,
            captured.store,
            passed.batch,
            explainer.audit,
            onward=trunk,
            until=top,
        )
        seeds = {}
        chosen = [i for i, own in enumerate(tops) if own == top]
        if top is None:
            ways |= dict.fromkeys(chosen, trunk)
        else:
            found = walks(explainer, part, passed, [Wanted({}, every[i]) for i in chosen], trunk)
            ways |= dict(zip(chosen, found, strict=True))
    results = []
    for i, condition in enumerate(explainer.conditions):
        _check_reached(every[i], ways[i])
        again = Again(explainer, captured, program, args, kwargs, target, begun[1], condition)
        results.append(_explanation(again, passed, begun, ways[i]))
    return results


def _check_reached(found: dict[Ref, Mask], way: Walk) -> None:
    """Raise `InvalidInput` for a condition on a module that relevance does not come by: it would count for nothing."""
    missed = {mask.where for mask in found.values()} - {found[ref].where for ref in way.masked}
    if missed and not any(mask.alone for mask in found.values()):
        raise InvalidInput(
            f"conditions: no relevance reaches {', '.join(sorted(missed))} for this target\n"
            "  do: name a module between the inputs and the explained output"
        )


def _explanation(again: Again, passed: Forward, begun: Start, way: Walk) -> Explanation:
    """What a finished walk says. Raises `ConservationError` where its account does not close."""
    _, score, resolved, entries = begun
    audit = None
    if again.explainer.audit:
        reached = (
            torch.zeros(passed.batch, dtype=torch.float64, device=score.device)
            if way.passed is None
            else way.passed
        )
        audit = accounts.total(
            [*entries, *way.entries],
            score.double(),
            reached,
            precision_of(again.captured),
        )
        audit.check()
    return Explanation(
        relevance_of(again.captured, way.inputs, again.args, again.kwargs),
        passed.output,
        resolved,
        score,
        audit,
        (again.args, again.kwargs),
        again.program.plan,
        "lrp",
        Inside((again,)),
    )


def clrp(explainer: Explainer, part: Part) -> list[Explanation]:
    """Contrastive relevance (Gu et al. 2018); the target is a class. Nothing is conserved, so that there is no audit."""
    captured, program, args, kwargs, targets = part
    passed = forward(explainer, captured, program, args, kwargs)
    results = []
    for target in targets:
        output = main_output(passed.output)
        several = callable(target) or (isinstance(target, Tensor) and target.is_floating_point())
        if several or not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
            raise InvalidInput(
                f"clrp: it sets one class against all others; the output is {tuple(output.shape)}, the target"
                f" {type(target).__name__}\n  do: give a class of an output (B, C) as target; other contrasts are float"
                " targets with weights of both signs, with method='lrp'"
            )
        _, score, resolved, _ = start(explainer, captured, passed, target)
        chosen, _ = weights_of(target, output, passed.batch)
        found = contrasted(captured, program, passed, chosen)
        relevance = relevance_of(captured, found, args, kwargs)
        results.append(
            Explanation(relevance, passed.output, resolved, score, None, (args, kwargs), program.plan, "clrp")
        )
    return results


def precision_of(captured: Captured) -> torch.dtype:
    """The coarsest real type among the values that carry relevance."""
    if captured.precision is not None:
        return captured.precision
    order = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    found = {
        meta.dtype
        for node in captured.graph.nodes
        for meta in node.metas
        if Ref(node.name) in captured.facts.data and meta.dtype in order
    }
    captured.precision = min(found, key=order.index, default=torch.float32)
    return captured.precision


def relevance_of(
    captured: Captured, found: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The relevance of each input tensor in the form the inputs were given: a tensor, a tuple or a dict."""
    by_origin = {int(node.origin): node.name for node in captured.graph.nodes if node.kind == "input"}
    flat, spec = pytree.tree_flatten((args, kwargs))
    result: list[Any] = []
    for index, leaf in enumerate(flat):
        if not isinstance(leaf, Tensor):
            result.append(None)
            continue
        name = by_origin.get(index)
        missing = torch.zeros(
            leaf.shape,
            dtype=leaf.dtype if leaf.is_floating_point() and leaf.dtype not in HALF else torch.float32,
            device=leaf.device,
        )
        result.append(missing if name is None else found.get(name, missing).contiguous())
    positional, named = pytree.tree_unflatten(result, spec)
    if named and not positional:
        return named
    if named:
        return (*positional, named)
    return positional[0] if len(positional) == 1 else positional


def differentiating(compute: Callable[..., Any], about: str) -> Method:
    """The row of a method that asks nothing of a model but its scores and gradients; it has no plan and no audit.

    `compute`: a function of a `Differentiable`, of the captured graph where it has an argument `captured`, and of
    options, all with defaults; returns relevance at each source, or that and its standard error.
    """
    arguments = inspect.signature(compute).parameters
    options = {name: a.default for name, a in arguments.items() if a.default is not inspect.Parameter.empty}
    name = compute.__name__

    def run(explainer: Explainer, part: Part) -> list[Explanation]:
        captured, _, args, kwargs, targets = part
        results = []
        for target in targets:
            function = differentiable(explainer, captured, args, kwargs, target)
            given = {"captured": captured} if "captured" in arguments else {}
            found = compute(function, **given, **explainer.options)
            means, errors = found if isinstance(found[0], tuple) else (found, None)

            def of_inputs(at: Sequence[Tensor], function: Differentiable = function) -> Any:
                return relevance_of(captured, _at_inputs(captured, function, at), args, kwargs)

            results.append(
                Explanation(
                    of_inputs(means),
                    function.output,
                    function.target,
                    function.score,
                    None,
                    (args, kwargs),
                    method=name,
                    standard_error=None if errors is None else of_inputs(errors),
                )
            )
        return results

    return Method(about, run, options)


def _at_inputs(captured: Captured, function: Differentiable, found: Sequence[Tensor]) -> dict[str, Tensor]:
    """What was found at the sources, by input: of token ids summed over their embedding's dimensions."""
    result: dict[str, Tensor] = {}
    behind = inputs_behind(captured, function.sources)
    for source, values in zip(function.sources, found, strict=True):
        values = values.float() if values.dtype in HALF else values
        name = behind[source]
        values = values if name == source else values.sum(-1)
        result[name] = result[name] + values if name in result else values
    return result


METHODS: dict[str, Method] = {
    "lrp": Method(
        "layer-wise relevance propagation (Bach et al. 2015), by the rules of a composite",
        lrp,
        {"autocast": None, "checkpoints": False, "compile": False},
        ruled=True,
    ),
    "clrp": Method(
        "contrastive relevance (Gu et al. 2018): for the target and not for all other classes",
        clrp,
        ruled=True,
    ),
    **{
        compute.__name__: differentiating(compute, about)
        for compute, about in (
            (gradients.gradient, "the gradient of the score by the input"),
            (gradients.sensitivity, "the squared gradient (Simonyan et al. 2014)"),
            (gradients.gradient_x_input, "the gradient times the input (Shrikumar et al. 2016)"),
            (gradients.deconvolution, "gradients that every ReLU rectifies (Zeiler and Fergus 2014)"),
            (
                gradients.guided_backprop,
                "gradients rectified and masked by every ReLU (Springenberg et al. 2015)",
            ),
            (
                gradients.grad_cam,
                "channels of a layer weighed by their mean gradient (Selvaraju et al. 2017)",
            ),
            (
                sampling.integrated_gradients,
                "gradients on the way from a baseline (Sundararajan et al. 2017)",
            ),
            (
                deeplift.deeplift,
                "contributions to the difference from a reference, rescale rule (Shrikumar et al. 2017)",
            ),
            (
                patterns.pattern_net,
                "the signal that units detect, by patterns of training data (Kindermans et al. 2018)",
            ),
            (
                patterns.pattern_attribution,
                "the score shared by weights times patterns of training data (Kindermans et al. 2018)",
            ),
            (sampling.smoothgrad, "the mean gradient at noisy copies of the input (Smilkov et al. 2017)"),
            (sampling.occlusion, "what the score loses when a window is replaced (Zeiler and Fergus 2014)"),
            (sampling.shapley, "Shapley values, by sampled orders or by kernel SHAP (Lundberg and Lee 2017)"),
            (sampling.random, "normal noise, the baseline that every method has to beat"),
        )
    },
    "contextual_decomposition": Method(
        "what each word or phrase contributes to an LSTM's score (Murdoch et al. 2018)",
        contextual_decomposition,
        {"phrases": None},
    ),
}


def methods() -> dict[str, str]:
    """The names of all methods, with one line on each."""
    return {name: method.about for name, method in METHODS.items()}
