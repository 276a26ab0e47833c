"""Why a model wrote what it wrote: each token that it generates, explained in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relprop.engine.isolate import LOCK, put_back, quietly
from relprop.errors import InvalidInput
from relprop.explain import Explainer
from relprop.explanation import Explanation
from relprop.text import DECODER, Piece, Token, Tokenised, is_text, spelled, tokenise


@dataclass(frozen=True, slots=True)
class Generation:
    """A text that a model wrote, and why it wrote each of its tokens.

    Attributes:
        prompt: what the model was given.
        written: what it wrote.
        explanations: one a written token, in their order. Each explains the token's score (its logit) at the place
            where it was written, by the tokens before it.
        steps: the written tokens with their places in prompt + written, without relevance.
    """

    prompt: str
    written: str
    explanations: tuple[Explanation, ...]
    steps: tuple[Piece, ...]

    @property
    def tokens(self) -> list[Token]:
        """The tokens that were read, the prompt's and the written ones; their relevance summed over what was written."""
        total = self.matrix.sum(0).tolist()
        rows = self.explanations[0].tokens[0]
        return [token._replace(relevance=value) for token, value in zip(rows, total, strict=True)]

    @property
    def matrix(self) -> Tensor:
        """The relevance of every token that was read for every token that was written, (written, read)."""
        rows = [[token.relevance for token in one.tokens[0]] for one in self.explanations]
        return torch.tensor(rows, dtype=torch.float64)

    def heatmap(self, **options: Any) -> Any:
        """A picture of the matrix (a PIL image): a row for each written token, a column for each that was read.

        options: `colours`, `limit`, `title`, `size` (of a cell, in pixels).
        """
        from relprop import show

        names = [token.text for token in self.explanations[0].tokens[0]]
        special = [token.start == token.end for token in self.explanations[0].tokens[0]]
        return show.text_matrix(self.matrix, names, [step.text for step in self.steps], special, **options)

    def save(self, file: str | Path, **options: Any) -> Path:
        """Write the picture to a file (PNG, JPEG or PDF by its suffix; .html: as a page)."""
        from relprop import show

        if Path(file).suffix.lower() == ".html":
            return show.save_page(self._html(**options), file)
        return show.save(self.heatmap(**options), file)

    def _repr_html_(self) -> str:
        return self._html()

    def _html(self, **options: Any) -> str:
        from relprop import show

        return show.html(self.heatmap(**options), f"{self.prompt} → {self.written.strip()}")

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, index: int) -> Explanation:
        return self.explanations[index]

    def __str__(self) -> str:
        lines = [f"{self.prompt!r} → {self.written!r}"]
        for step, one in zip(self.steps, self.explanations, strict=True):
            most = sorted(one.tokens[0], key=lambda token: -abs(token.relevance))[:4]
            words = ", ".join(f"{token.text!r} {token.relevance:+.3g}" for token in most)
            lines.append(f"{step.text!r:>16} {float(one.score[0]):+9.4g} = {words} …")
        return "\n".join(lines)


def explain_generation(
    model: Any,
    prompt: str,
    tokenizer: Any = None,
    max_new_tokens: int = 20,
    rules: Any = "auto",
    method: str = "lrp",
    *,
    generate: Mapping[str, Any] | None = None,
    **options: Any,
) -> Generation:
    """Let a model of transformers write on from a prompt, and explain each token that it wrote.

    A causal model computes the scores of all written tokens in one forward pass without a cache, so that there is one
    capture and one forward pass for all of them, and one walk each; relevance of later tokens is exactly zero.

    Args:
        model: a model of transformers that can `generate`, its pipeline, its folder, or an `Explainer` of it.
        prompt: what it writes on from. For a model with an encoder, what the encoder reads.
        tokenizer: the model's; a pipeline or folder brings it.
        max_new_tokens: how many tokens are written at most; fewer where the model ends the text.
        rules, method, options: as for `explain`.
        generate: further arguments of the model's `generate`. By default the most likely token is written each time.

    Raises:
        InvalidInput: the prompt is empty or too long, the model cannot write, an argument is wrong.
    """
    if not is_text(prompt) or not isinstance(prompt, str):
        raise InvalidInput("prompt: not a text\n  do: give one string; several prompts one after the other")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InvalidInput(
            f"max_new_tokens: {max_new_tokens!r} is no positive whole number\n  do: give 1 or more"
        )
    explainer = (
        model
        if isinstance(model, Explainer)
        else Explainer(model, rules, method, tokenizer=tokenizer, **options)
    )
    network = explainer.model
    if not isinstance(network, torch.nn.Module) or not callable(getattr(network, "generate", None)):
        raise InvalidInput(
            f"model: {type(network).__name__} cannot write (it has no generate)\n"
            "  do: give a causal or an encoder-decoder model of transformers, such as …ForCausalLM"
        )
    read = tokenise(network, prompt, explainer.tokenizer)
    if not isinstance(read.inputs, dict):
        raise InvalidInput("model: it takes no input_ids\n  do: give a model of transformers")
    ids = _written(network, read.inputs, max_new_tokens, dict(generate or {}))
    whole, steps, written = _continued(explainer.tokenizer, read, ids)
    source = DECODER if DECODER in whole.sources() else "input_ids"
    first = whole.inputs[source].shape[1] - len(ids)
    targets = [(first + number, token) for number, token in enumerate(ids)]
    found = explainer.explain_targets(whole, targets)
    if any(_reads_on(one, source, first + number) for number, one in enumerate(found)):
        found = [explainer(_cut(whole, source, place + 1), (place, token)) for place, token in targets]
        found = [_padded(one, whole) for one in found]
    return Generation(prompt, written, tuple(found), steps)


def _written(
    model: torch.nn.Module, inputs: dict[str, Tensor], most: int, generate: dict[str, Any]
) -> list[int]:
    """The ids that the model writes on, its ending among them."""
    settings = getattr(model, "generation_config", None)
    given = {name: value for name, value in inputs.items() if name != DECODER}
    if getattr(settings, "pad_token_id", None) is None and "pad_token_id" not in generate:
        end = getattr(settings, "eos_token_id", None)
        generate["pad_token_id"] = end[0] if isinstance(end, list) and end else end if end is not None else 0
    generate = {"do_sample": False, "num_beams": 1, **generate, "max_new_tokens": most}
    try:
        with LOCK, quietly(), torch.no_grad(), put_back(model):
            sequences = model.generate(**given, **generate)  # type: ignore[operator]
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInput(
            f"model: its generate fails: {lines[0]}\n  do: give arguments with which model.generate(…) runs"
        ) from error
    sequences = getattr(sequences, "sequences", sequences)
    if sequences.shape[0] != 1:
        raise InvalidInput(
            f"generate: it wrote {sequences.shape[0]} texts\n  do: leave num_return_sequences at 1"
        )
    start = inputs.get(DECODER, inputs["input_ids"]).shape[1]
    ids: list[int] = sequences[0, start:].tolist()
    if not ids:
        raise InvalidInput("model: it wrote nothing\n  do: give another prompt or a larger max_new_tokens")
    return ids


def _continued(tokenizer: Any, read: Tokenised, ids: list[int]) -> tuple[Tokenised, tuple[Piece, ...], str]:
    """The inputs with all written tokens but the last behind them; the written tokens; their text."""
    source = DECODER if DECODER in read.inputs else "input_ids"
    before = read.inputs[source][0].tolist()
    prompt = read.texts[0]
    start = len(prompt) + (source == DECODER)
    written, steps = spelled(tokenizer, ids, start, source, before)
    steps = tuple(step._replace(place=step.place + len(before)) for step in steps)
    more = torch.tensor([ids[:-1]], dtype=torch.long, device=read.inputs[source].device)
    inputs = dict(read.inputs)
    for name, value in read.inputs.items():
        if name == source:
            inputs[name] = torch.cat([value, more], 1)
        elif source == "input_ids" and value.shape == read.inputs[source].shape:
            inputs[name] = torch.cat([value, value[:, -1:].expand(-1, len(ids) - 1)], 1)
    text = prompt + ("\n" if source == DECODER else "") + written
    return Tokenised((text,), (read.pieces[0] + steps[:-1],), inputs), steps, written


def _reads_on(one: Explanation, source: str, place: int) -> bool:
    """Whether tokens behind the place of a written token have relevance for it: the model is not causal."""
    relevance = one.relevance[source] if isinstance(one.relevance, dict) else one.relevance
    return bool((relevance[:, place + 1 :] != 0).any())


def _cut(whole: Tokenised, source: str, length: int) -> Tokenised:
    """The text as it was when the token behind `length` tokens was written."""
    size = whole.inputs[source].shape
    inputs = {
        name: value[:, :length]
        if value.shape == size and (name == source or source == "input_ids")
        else value
        for name, value in whole.inputs.items()
    }
    pieces = tuple(p for p in whole.pieces[0] if p.source != source or p.place < length)
    return Tokenised(whole.texts, (pieces,), inputs)


def _padded(one: Explanation, whole: Tokenised) -> Explanation:
    """The explanation with zeros for the tokens that were written later, so that all have the same tokens."""

    def fill(relevance: Tensor, source: str) -> Tensor:
        size = whole.inputs[source].shape[1]
        return torch.nn.functional.pad(relevance, (0, size - relevance.shape[1]))

    relevance = one.relevance
    if isinstance(relevance, dict):
        relevance = {source: fill(part, source) for source, part in relevance.items()}
    else:
        relevance = fill(relevance, "input_ids")
    return dataclasses.replace(one, relevance=relevance, text=whole)
