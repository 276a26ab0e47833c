"""Relevance of a text's words, the same words whatever model was explained, so that models can be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from relprop.errors import InvalidInput
from relprop.text.tokens import Token

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"
"""What a word is, as a regular expression: letters and digits together, any other sign alone."""


def words(explanation: Any, pattern: str = WORD) -> list[list[Token]]:
    """For each text its words with their relevance, which depend on the text alone and not on the model's tokens.

    A token's relevance is divided among the words whose characters it covers, by their number; tokens of a part of a word
    add up to the word's. What stands for no characters ([CLS]) is no word's: the words' sum is that much less. Of two
    explanations of the same texts `words` therefore gives the same words in the same order.

    Args:
        explanation: an `Explanation` of texts given as strings, by whatever model and method.
        pattern: of a word.

    Raises:
        InvalidInput: the explained inputs are no strings.
    """
    text = getattr(explanation, "text", None)
    if text is None:
        raise InvalidInput(
            "words: the explained inputs are no texts\n  do: explain strings, with tokenizer=… where the model brings none"
        )
    rows = zip(text.texts, explanation.tokens, strict=True)
    return [_of_text(whole, tokens, pattern) for whole, tokens in rows]


def _of_text(text: str, tokens: Sequence[Token], pattern: str) -> list[Token]:
    spans = [match.span() for match in re.finditer(pattern, text)]
    amounts = [0.0] * len(spans)
    first = 0
    for token in sorted(tokens, key=lambda token: token.start):
        while first < len(spans) and spans[first][1] <= token.start:
            first += 1
        shared = []
        for place in range(first, len(spans)):
            start, end = spans[place]
            if start >= token.end:
                break
            shared.append((place, min(end, token.end) - max(start, token.start)))
        total = sum(size for _, size in shared)
        for place, size in shared:
            amounts[place] += token.relevance * size / total
    return [
        Token(text[start:end], start, end, amount)
        for (start, end), amount in zip(spans, amounts, strict=True)
    ]
