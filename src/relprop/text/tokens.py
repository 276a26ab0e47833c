"""Texts as tokens: what each token is called, where it stands in the text, and which relevance is its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relprop.errors import InvalidInput

SPACE = "␣"
"""The name of a token that is nothing but the mark of a space."""


class Token(NamedTuple):
    """One token of an explained text: its text, its characters from `start` to `end` (end excluded), its relevance.

    A token that stands for no characters (a special token such as [CLS]) has start = end.
    """

    text: str
    start: int
    end: int
    relevance: float


class Piece(NamedTuple):
    """One token before it is explained: its text, its characters, and its place in the model's input `source`."""

    text: str
    start: int
    end: int
    place: int
    source: str = "input_ids"


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A batch of texts as a model takes them.

    Attributes:
        texts: the B texts.
        pieces: the tokens of each text in its order, without padding.
        inputs: what the model is called with: a tensor of ids (B, T), or a dict of keyword arguments.
    """

    texts: tuple[str, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    inputs: Any

    def last(self, source: str) -> tuple[int, ...]:
        """The place of each text's last token in the input `source`."""
        return tuple(max(p.place for p in pieces if p.source == source) for pieces in self.pieces)

    def sources(self) -> tuple[str, ...]:
        """The inputs that hold tokens, in the order in which the tokens are listed."""
        return tuple(dict.fromkeys(piece.source for piece in self.pieces[0]))

    def tokens(self, relevance: Any) -> list[list[Token]]:
        """The tokens of each text with the relevance that an explanation of `inputs` has for them."""
        values = {source: per_token(relevance, source).tolist() for source in self.sources()}
        return [
            [Token(p.text, p.start, p.end, values[p.source][row][p.place]) for p in pieces]
            for row, pieces in enumerate(self.pieces)
        ]


def per_token(relevance: Any, source: str) -> Tensor:
    """The relevance of each token (B, T): that of its id and of all else given per token (its segment, its position)."""
    if not isinstance(relevance, Mapping):
        whole: Tensor = relevance if isinstance(relevance, Tensor) else relevance[0]
        return whole
    own: Tensor = relevance[source]
    beside = [
        part
        for name, part in relevance.items()
        if isinstance(part, Tensor) and part.shape == own.shape and _belongs(name, source)
    ]
    return torch.stack([own, *beside]).sum(0) if beside else own


def _belongs(name: str, source: str) -> bool:
    decoder = source.startswith("decoder_")
    return name != source and not name.endswith("input_ids") and name.startswith("decoder_") == decoder


def pieces_of(
    text: str, spans: Sequence[tuple[int, int]], names: Sequence[str], special: Sequence[bool]
) -> tuple[Piece, ...]:
    """The tokens of one text from a tokenizer's spans of characters.

    names: what each token is called where it stands for no characters of its own; special: which tokens are
    the tokenizer's own ([CLS]) or unknown ([UNK]), and keep their name. Spaces around a token are no part of it.
    """
    found: list[Piece] = []
    before = 0
    for place, ((start, end), name, own) in enumerate(zip(spans, names, special, strict=True)):
        inside = text[start:end]
        if inside.strip():
            start, end = start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())
        elif not inside and not own and not name.strip() and text[start - 1 : start].isspace():
            start, end = start - 1, start  # the mark of the space before it, which the tokenizer cut off
        if not own and inside.strip() and not name.strip():
            end = start  # the mark of a space that is not in the text
        if start == end:
            start = end = max(before, start)
        shown = name.strip() or SPACE if own or start == end else text[start:end]
        found.append(Piece(shown, start, end, place))
        before = end
    return tuple(found)


def found_in(text: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """Spans of tokens in a text for a tokenizer that gives none: each is looked for behind the one before it.

    A token that is not found there has an empty span.
    """
    spans: list[tuple[int, int]] = []
    lower, cursor = text.lower(), 0
    folded = lower if len(lower) == len(text) else text  # a letter whose lower case is longer would shift all
    for name in names:
        wanted = name.strip()
        wanted = wanted.lower() if folded is lower else wanted
        start = folded.find(wanted, cursor) if wanted else -1
        gap = folded[cursor:start].strip() if start >= 0 else ""
        if start < 0 or len(gap) > 8:  # further away it is another word's
            spans.append((cursor, cursor))
            continue
        cursor = start + len(wanted)
        spans.append((start, cursor))
    return spans


def refuse_empty(texts: Sequence[str], pieces: Sequence[tuple[Piece, ...]]) -> None:
    """Raise `InvalidInput` for a text without a token that stands for characters."""
    for number, (text, tokens) in enumerate(zip(texts, pieces, strict=True)):
        if not any(token.end > token.start for token in tokens):
            which = "the text" if len(texts) == 1 else f"text {number}"
            raise InvalidInput(
                f"inputs: {which} is empty: {text!r} has no tokens\n  do: give a text with words"
            )
