"""Pairs of features behind a similarity: which part of one input goes with which part of the other (BiLRP)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine import audit as accounts
from relprop.engine.propagate import HALF, walk
from relprop.errors import InvalidInput
from relprop.explain import Explainer, Inputs, forward
from relprop.explain.explainer import Part
from relprop.explain.together import rounds
from relprop.methods import precision_of
from relprop.targets import main_output

Similarity = Literal["inner", "cosine"]
AT_ONCE = 32
"""How many dimensions of the embedding are walked together at most."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which pairs of features make two inputs similar.

    Attributes:
        relevance: (B, …, …) of the parts of the first input times those of the second: (B, T, T') for tokens, (B, h, w,
            h', w') for patches of images. Its sum and the accounts add up to the similarity.
        similarity: (B,) the inner product of the two embeddings, or their cosine.
        absorbed: from a reason to its sum, (B,) float64: what the walks of either side absorbed, times the other side.
        embeddings: the two embeddings, (B, M) each.
        inputs: the two inputs, as they were given. patch: the side of a patch of an image; None for other inputs.
        tokens: for texts, the tokens of either side, a list a sample.
    """

    relevance: Tensor = field(repr=False)
    similarity: Tensor
    absorbed: dict[str, Tensor] = field(repr=False)
    embeddings: tuple[Tensor, Tensor] = field(repr=False)
    inputs: tuple[Any, Any] = field(repr=False)
    patch: int | None = None
    tokens: tuple[Any, Any] | None = field(repr=False, default=None)

    @property
    def gap(self) -> Tensor:
        """similarity − Σ relevance − Σ absorbed, (B,): rounding error and nothing else."""
        gap = self.similarity.double() - self.relevance.flatten(1).sum(1, dtype=torch.float64)
        for amount in self.absorbed.values():
            gap = gap - amount
        return gap

    def __str__(self) -> str:
        """The accounts of the first pair of inputs, a line each, as an audit prints them."""
        rows = [
            ("similarity", self.similarity),
            ("relevance", self.relevance.flatten(1).sum(1)),
            *((f"absorbed: {reason}", amount) for reason, amount in self.absorbed.items()),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {float(values[0]):+.6g}" for name, values in rows)

    def picture(self, **options: Any) -> Any:
        """The strongest pairs as lines between patches or words, red for and blue against (a PIL image).

        `options`: those of `relprop.show.pairs`: `sample`, `strongest`, `words`, `title`.
        """
        from relprop import show

        return show.pairs(self, **options)


def bilrp(
    model: Any,
    x: Inputs,
    x2: Inputs,
    rules: Any = "auto",
    *,
    similarity: Similarity = "inner",
    patch: int | None = None,
    at_once: int = AT_ONCE,
    **options: Any,
) -> Pairs:
    """Explain the similarity of two inputs by pairs of their features (BiLRP, Eberle et al. 2020).

    The similarity is the inner product ⟨φ(x), φ(x')⟩ of what the model makes of either input. Each dimension m of φ is
    propagated to the inputs by itself, and R = Σ_m R⁽ᵐ⁾(x) ⊗ R⁽ᵐ⁾(x'). All dimensions of one side share one forward
    pass; relevance is summed over channels and patches before the product, so that memory grows with patches².

    Args:
        model: a model whose output is an embedding (B, M), or an `Explainer` of one.
        x, x2: B inputs each, compared one by one. Texts may have different lengths.
        similarity: "inner", or "cosine": divided by the lengths of the embeddings, which count as constants.
        patch: the side of the patches of images, in pixels; by default there are 16 along the longer side.
        at_once: how many dimensions are walked together: more is faster and takes more memory.
        options: as for `Explainer`.

    Raises:
        InvalidInput: the output is no embedding, or the inputs do not pair. ConservationError: an account does not close.
    """
    if similarity not in ("inner", "cosine"):
        raise InvalidInput(f"similarity: {similarity!r} is unknown\n  do: inner or cosine")
    if at_once < 1:
        raise InvalidInput(
            f"at_once: {at_once} is below 1\n  do: give the number of dimensions that are walked together"
        )
    explainer = model if isinstance(model, Explainer) else Explainer(model, rules, **options)
    with torch.inference_mode(False):
        sides = [_side(explainer, inputs, patch, at_once) for inputs in (x, x2)]
    one, two = sides
    if one.embedding.shape != two.embedding.shape:
        shapes = f"{tuple(one.embedding.shape)} and {tuple(two.embedding.shape)}"
        raise InvalidInput(
            f"bilrp: embeddings of shape {shapes}\n  do: give as many second inputs as first ones"
        )
    relevance = torch.einsum("mbp,mbq->bpq", one.relevance.flatten(2), two.relevance.flatten(2))
    relevance = relevance.reshape(len(relevance), *one.relevance.shape[2:], *two.relevance.shape[2:])
    # φφ' − rr' = (φ − r) φ' + r (φ' − r') for the sums r, r' that reach the inputs
    reached = one.relevance.flatten(2).sum(2, dtype=torch.float64).T
    absorbed: dict[str, Tensor] = {}
    for account, other in ((one.absorbed, two.embedding.double()), (two.absorbed, reached)):
        for reason, amount in account.items():
            found = (amount * other).sum(1)
            absorbed[reason] = absorbed[reason] + found if reason in absorbed else found
    whole = (one.embedding * two.embedding).sum(1)
    if similarity == "cosine":
        length = one.embedding.norm(dim=1) * two.embedding.norm(dim=1)
        if not bool((length > 0).all()):
            raise InvalidInput(
                "bilrp: an embedding is 0, so that there is no cosine\n  do: similarity='inner'"
            )
        whole, relevance = whole / length, relevance / length.reshape(-1, *[1] * (relevance.dim() - 1))
        absorbed = {reason: amount / length.double() for reason, amount in absorbed.items()}
    tokens = None if one.tokens is None or two.tokens is None else (one.tokens, two.tokens)
    return Pairs(relevance, whole, absorbed, (one.embedding, two.embedding), (x, x2), one.patch, tokens)


@dataclass(frozen=True, slots=True)
class _Side:
    """Embedding (B, M); relevance of each of its dimensions, (M, B, parts…); what each absorbed, (B, M) by reason."""

    embedding: Tensor
    relevance: Tensor
    absorbed: dict[str, Tensor]
    patch: int | None
    tokens: Any


def _side(explainer: Explainer, inputs: Inputs, patch: int | None, at_once: int) -> _Side:
    text, args, kwargs = explainer.read(inputs)
    found = [_of_part(explainer, part, patch, at_once) for part in explainer.parts(args, kwargs, [0], text)]
    reasons = dict.fromkeys(reason for side in found for reason in side.absorbed)
    absorbed = {
        reason: torch.cat(
            [
                side.absorbed.get(reason, torch.zeros_like(side.embedding, dtype=torch.float64))
                for side in found
            ]
        )
        for reason in reasons
    }
    relevance = torch.cat([side.relevance for side in found], 1)
    tokens = None if text is None else text
    return _Side(torch.cat([side.embedding for side in found]), relevance, absorbed, found[0].patch, tokens)


def _of_part(explainer: Explainer, part: Part, patch: int | None, at_once: int) -> _Side:
    captured, program, args, kwargs, _ = part
    passed = forward(explainer, captured, program, args, kwargs)
    ref, output = main_output(captured.graph.output), main_output(passed.output)
    if not isinstance(output, Tensor) or output.dim() != 2 or not output.is_floating_point():
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidInput(
            f"bilrp: the output {shape} is no embedding (B, M)\n  do: give a model that returns one vector a sample"
        )
    if ref not in captured.facts.data:
        raise InvalidInput("bilrp: the embedding does not depend on the inputs\n  do: check the model")
    seed = output.float() if output.dtype in HALF else output
    pieces, side = [], patch
    absorbed: dict[str, Tensor] = {}
    for dimensions, values in rounds(explainer, part, passed, seed.shape[1], at_once):
        count = len(dimensions)
        seeds = torch.zeros(count, *seed.shape, dtype=seed.dtype, device=seed.device)
        for k, m in enumerate(dimensions):
            seeds[k, :, m] = seed[:, m]
        way = walk(program, values, {ref: seeds.flatten(0, 1)}, captured.store, passed.batch * count)
        score = seeds.sum(2).flatten().double()
        reached = torch.zeros_like(score) if way.passed is None else way.passed
        audit = accounts.total(way.entries, score, reached, precision_of(captured))
        audit.check()
        found, side = _parts_of(_explained(way.inputs), patch)
        pieces.append(found.reshape(count, passed.batch, *found.shape[1:]))
        for reason, amount in audit.absorbed.items():
            table = absorbed.setdefault(
                reason, torch.zeros(seed.shape, dtype=torch.float64, device=seed.device)
            )
            table[:, dimensions] = amount.reshape(count, passed.batch).T
    return _Side(output, torch.cat(pieces), absorbed, side, None)


def _explained(found: dict[str, Tensor]) -> Tensor:
    """The relevance of the one input that is explained."""
    if len(found) != 1:
        raise InvalidInput(
            f"bilrp: {len(found)} inputs are explained, and pairs are those of one\n  do: give a model of one input"
        )
    return next(iter(found.values()))


def _parts_of(relevance: Tensor, patch: int | None) -> tuple[Tensor, int | None]:
    """Relevance (N, …) by parts: tokens and features as they are, images (N, C, H, W) summed over patches."""
    if relevance.dim() < 3:
        return relevance, None
    if relevance.dim() == 3:  # channels or features of steps
        return relevance.sum(1), None
    if relevance.dim() > 4:
        raise InvalidInput(
            f"bilrp: relevance of shape {tuple(relevance.shape)} has no patches\n  do: give images or tokens"
        )
    side = max(1, math.ceil(max(relevance.shape[2:]) / 16)) if patch is None else patch
    if side < 1:
        raise InvalidInput(f"patch: {side} is below 1\n  do: give the side of a patch in pixels")
    high, wide = relevance.shape[2:]
    padded = F.pad(relevance.sum(1), (0, -wide % side, 0, -high % side))
    return padded.unfold(1, side, side).unfold(2, side, side).sum((-1, -2)), side
