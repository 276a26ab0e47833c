"""From texts to a model's inputs, by any tokenizer: transformers', tokenizers', a function, or a `Vocabulary`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.text.tokens import SPACE, Piece, Tokenised, found_in, pieces_of, refuse_empty

DECODER = "decoder_input_ids"
"""The input that holds the tokens which a model with a decoder has written so far."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The simplest tokenizer: words and their ids.

    Attributes:
        words: from a word to its id, or the words in the order of their ids.
        unknown: the id of all other words; without it they are refused.
        padding: the id that fills shorter texts of a batch; without it the texts of a batch must be equally long.
            Give it only where the model disregards that id.
        pattern: the regular expression of a word.
        lower: look words up in lower case.
    """

    words: Mapping[str, int] | Sequence[str]
    unknown: int | None = None
    padding: int | None = None
    pattern: str = r"\w+(?:['’]\w+)*|[^\w\s]"
    lower: bool = True

    def __call__(self, text: str) -> list[tuple[int, int, int]]:
        """The id, start and end of each word of a text. Raises `InvalidInput` for a word without an id."""
        table = self.table()
        found = []
        for match in re.finditer(self.pattern, text):
            word = match.group().lower() if self.lower else match.group()
            number = table.get(word, self.unknown)
            if number is None:
                raise InvalidInput(
                    f"inputs: the word {match.group()!r} is not in the vocabulary\n"
                    "  do: give Vocabulary(…, unknown=ID) for words that are not"
                )
            found.append((number, match.start(), match.end()))
        return found

    def table(self) -> Mapping[str, int]:
        """From a word to its id."""
        if isinstance(self.words, Mapping):
            return self.words
        return {word: number for number, word in enumerate(self.words)}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text's ids and tokens, and what else the tokenizer gives per token (segments)."""

    ids: list[int]
    pieces: tuple[Piece, ...]
    more: dict[str, list[int]]


def is_text(inputs: Any) -> bool:
    """Whether inputs are a text or a batch of texts."""
    if isinstance(inputs, (list, tuple)):
        return bool(inputs) and all(isinstance(one, str) for one in inputs)
    return isinstance(inputs, str)


def tokenise(model: Any, texts: str | Sequence[str], tokenizer: Any) -> Tokenised:
    """Texts as the model takes them: padded on the right, with a mask, on the model's device.

    Raises `InvalidInput` for an empty text, a text longer than the tokenizer's model takes, texts of different
    lengths where the model takes no mask, and a missing or unfit tokenizer.
    """
    batch = [texts] if isinstance(texts, str) else list(texts)
    if tokenizer is None:
        raise InvalidInput(
            f"inputs: {batch[0][:20]!r} is a str, and a text needs a tokenizer\n"
            "  do: give tokenizer=: the model's own from transformers, relprop.text.Vocabulary(words), or a function"
            " from a text to ids and offsets; where no text is meant, a torch.Tensor with the batch first"
        )
    encoded = [encode(tokenizer, text) for text in batch]
    refuse_empty(batch, [one.pieces for one in encoded])
    inputs = _inputs(model, encoded, tokenizer)
    pieces = [one.pieces for one in encoded]
    if isinstance(inputs, dict) and DECODER in inputs:
        start = inputs[DECODER][0].tolist()
        pieces = [
            found + spelled(tokenizer, start, len(text), DECODER)[1]
            for text, found in zip(batch, pieces, strict=True)
        ]
    return Tokenised(tuple(batch), tuple(pieces), inputs)


def encode(tokenizer: Any, text: str) -> Encoded:
    """One text by a tokenizer of any kind. Raises `InvalidInput` where it is none."""
    if is_huggingface(tokenizer):
        return _huggingface(tokenizer, text)
    read = tokenizer if callable(tokenizer) else getattr(tokenizer, "encode", None)
    if read is None:
        raise InvalidInput(
            f"tokenizer: {type(tokenizer).__name__} is no tokenizer\n"
            "  do: give one of transformers, a relprop.text.Vocabulary, or a function from a text to ids and offsets"
        )
    return _plain(read(text), text)


def is_huggingface(tokenizer: Any) -> bool:
    """Whether a tokenizer is one of transformers."""
    return hasattr(tokenizer, "convert_ids_to_tokens") and callable(tokenizer)


def _huggingface(tokenizer: Any, text: str) -> Encoded:
    fast = bool(getattr(tokenizer, "is_fast", False))
    held = tokenizer(
        text, return_offsets_mapping=fast, return_special_tokens_mask=True, truncation=False, verbose=False
    )
    ids = [int(number) for number in held["input_ids"]]
    longest = int(getattr(tokenizer, "model_max_length", 0) or 0)
    if 0 < longest < len(ids):
        raise InvalidInput(
            f"inputs: the text has {len(ids)} tokens, and the model takes {longest}\n  do: give a shorter text, or explain it in parts"
        )
    names = [name_of(tokenizer, number) for number in ids]
    special = [
        bool(own) or number == getattr(tokenizer, "unk_token_id", None)
        for own, number in zip(held["special_tokens_mask"], ids, strict=True)
    ]
    if fast:
        spans = [(int(start), int(end)) for start, end in held["offset_mapping"]]
    else:
        spans = found_in(text, ["" if own else name for own, name in zip(special, names, strict=True)])
    more = {
        name: [int(v) for v in values]
        for name, values in held.items()
        if name in tokenizer.model_input_names and name not in ("input_ids", "attention_mask")
        if len(values) == len(ids) and all(isinstance(v, int) for v in values)
    }
    return Encoded(ids, pieces_of(text, spans, names, special), more)


def spelled(
    tokenizer: Any,
    ids: Sequence[int],
    start: int = 0,
    source: str = "input_ids",
    before: Sequence[int] = (),
) -> tuple[str, tuple[Piece, ...]]:
    """The text that ids stand for behind those `before` them, and its tokens, their characters counted from `start`.

    Every token is named by what it adds to the text of those before it, so that a letter of several tokens is
    the last one's.
    """
    text, pieces = "", []
    whole = list(ids)
    known = len(_decoded(tokenizer, before)) if before else 0
    for place, number in enumerate(whole):
        shown, span = f"<{number}>", (len(text), len(text))
        if is_huggingface(tokenizer):
            longer = _decoded(tokenizer, [*before, *whole[: place + 1]])[known:]
            shown = name_of(tokenizer, number).strip() or SPACE
        else:
            word = words_of(tokenizer).get(number)
            shown = shown if word is None else word
            longer = f"{text} {shown}" if text else shown
        if len(longer) > len(text) and number not in getattr(tokenizer, "all_special_ids", ()):
            added = longer[len(text) :]
            span = (len(text) + len(added) - len(added.lstrip()), len(longer))
            span = span if added.strip() else (len(text), len(longer))
            shown = added.strip() or added
        text = longer if len(longer) > len(text) else text
        pieces.append(Piece(shown, start + span[0], start + span[1], place, source))
    return text, tuple(pieces)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, without letters that are not complete."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).rstrip("\ufffd")


def words_of(tokenizer: Any) -> dict[int, str]:
    """From an id of a `Vocabulary` to its word; empty for other tokenizers."""
    table = tokenizer.table() if isinstance(tokenizer, Vocabulary) else {}
    return {number: word for word, number in table.items()}


def name_of(tokenizer: Any, number: int) -> str:
    """The readable name of an id: special tokens as they are, others as the text they stand for."""
    token = tokenizer.convert_ids_to_tokens(number)
    if not isinstance(token, str):
        return f"<{number}>"
    if number in tokenizer.all_special_ids:
        return token
    shown = str(tokenizer.convert_tokens_to_string([token]))
    return readable(token) if "\ufffd" in shown or not shown else shown


def readable(token: str) -> str:
    """A vocabulary's spelling of a token as plain text: the marks of spaces and of word parts are taken away."""
    for mark in ("▁", "Ġ"):
        token = token.replace(mark, " ")
    return token.replace("Ċ", "\n").replace("</w>", "").removeprefix("##").removesuffix("@@")


def _plain(held: Any, text: str) -> Encoded:
    """What a function from a text returned: (id, start, end) each, or ids and offsets in one of their usual forms."""
    names: Sequence[str] | None = None
    special: Sequence[bool] | None = None
    ids: Any
    spans: Any
    if isinstance(held, Mapping):
        ids, spans = held.get("input_ids"), held.get("offset_mapping", held.get("offsets"))
    elif hasattr(held, "ids") and hasattr(held, "offsets"):  # an Encoding of the package tokenizers
        ids, spans, names = held.ids, held.offsets, [readable(token) for token in held.tokens]
        special = [bool(own) for own in held.special_tokens_mask]
    elif isinstance(held, tuple) and len(held) == 2:
        ids, spans = held
    else:
        rows: list[Any] = list(held) if isinstance(held, (list, tuple)) else [None]
        triples = all(isinstance(row, (list, tuple)) and len(row) == 3 for row in rows)
        ids, spans = ([row[0] for row in rows], [row[1:] for row in rows]) if triples else (None, None)
    ids = ids.reshape(-1).tolist() if isinstance(ids, Tensor) else ids
    try:
        numbers = [int(number) for number in ids]
        places = [(int(start), int(end)) for start, end in spans]
        if len(places) != len(numbers):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"tokenizer: it returned {type(held).__name__}, not ids and offsets\n"
            "  do: return (ids, offsets) for a text: a list of ids, and (start, end) in characters for each"
        ) from error
    if any(not 0 <= start <= end <= len(text) for start, end in places):
        raise InvalidInput(
            f"tokenizer: an offset lies outside the text of {len(text)} characters\n"
            "  do: return (start, end) in characters of the text, the end excluded"
        )
    names = [f"<{number}>" for number in numbers] if names is None else names
    special = [False] * len(numbers) if special is None else special
    return Encoded(numbers, pieces_of(text, places, names, special), {})


def _inputs(model: Any, encoded: Sequence[Encoded], tokenizer: Any) -> Any:
    takes = parameters_of(model)
    longest = max(len(one.ids) for one in encoded)
    ragged = any(len(one.ids) != longest for one in encoded)
    fill = _padding(model, tokenizer)
    if ragged and "attention_mask" not in takes and getattr(tokenizer, "padding", None) is None:
        lengths = ", ".join(str(len(one.ids)) for one in encoded)
        raise InvalidInput(
            f"inputs: texts of {lengths} tokens, and the model takes no attention_mask\n"
            "  do: explain them one at a time, or give Vocabulary(…, padding=ID) where the model disregards that id"
        )
    device = next((w.device for w in model.parameters()), None) if hasattr(model, "parameters") else None

    def tensor(rows: list[list[int]], value: int) -> Tensor:
        filled = [row + [value] * (longest - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.long, device=device)

    ids = tensor([one.ids for one in encoded], fill or 0)
    if "input_ids" not in takes:
        return ids
    inputs = {"input_ids": ids}
    if "attention_mask" in takes:
        inputs["attention_mask"] = tensor([[1] * len(one.ids) for one in encoded], 0)
    for name in encoded[0].more:
        if name in takes:
            inputs[name] = tensor([one.more[name] for one in encoded], 0)
    start = decoder_start(model)
    if start is not None and DECODER in takes:
        inputs[DECODER] = torch.full((len(encoded), 1), start, dtype=torch.long, device=device)
    return inputs


def parameters_of(model: Any) -> frozenset[str]:
    """The names of the arguments of a module's forward pass; empty where they cannot be read."""
    forward: Callable[..., Any] | None = getattr(model, "forward", None)
    try:
        return frozenset() if forward is None else frozenset(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _padding(model: Any, tokenizer: Any) -> int | None:
    """The id that fills up short texts: the model's own, the tokenizer's, or a vocabulary's."""
    if isinstance(tokenizer, Vocabulary):
        return tokenizer.padding
    own = getattr(getattr(model, "config", None), "pad_token_id", None)
    found = getattr(tokenizer, "pad_token_id", None) if own is None else own
    return int(found) if isinstance(found, int) else None


def decoder_start(model: Any) -> int | None:
    """The id that a model with a decoder starts from; None for one without."""
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return None
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return None
