"""What a batch of inputs says as text: strings are tokenised, ids are spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.text.tokenizers import DECODER, encode, is_huggingface, is_text, spelled, tokenise
from relprop.text.tokens import Piece, Tokenised


def reading(model: Any, inputs: Any, tokenizer: Any) -> Tokenised | None:
    """The inputs as text: strings, tokenised; ids, spelled where a tokenizer is known; None for all else."""
    if is_text(inputs):
        return tokenise(model, inputs, tokenizer)
    if isinstance(inputs, Tokenised):
        return inputs
    ids = ids_of(inputs)
    if isinstance(inputs, Mapping):
        refuse_hidden(inputs)
    if ids is None or tokenizer is None:
        return None
    return named(inputs, tokenizer)


def ids_of(inputs: Any) -> Tensor | None:
    """The token ids (B, T) among a model's inputs; None where there are none."""
    if isinstance(inputs, Mapping):
        inputs = inputs.get("input_ids")
    elif isinstance(inputs, (tuple, list)) and len(inputs) == 1:
        inputs = inputs[0]
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.dtype not in (torch.int64, torch.int32):
        return None
    return inputs


def refuse_hidden(inputs: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` for a mask that hides every token of a text."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.numel() and not mask.is_floating_point():
        hidden = (mask == 0).all(1).nonzero().reshape(-1).tolist()
        if hidden:
            raise InvalidInput(
                f"inputs: the attention_mask hides every token of sample {hidden[0]}\n"
                "  do: give 1 for the tokens that the model shall see"
            )


def named(inputs: Any, tokenizer: Any = None) -> Tokenised:
    """Ids spelled out as text, without the padding that an attention_mask hides.

    Without a tokenizer the tokens are called by their numbers.
    """
    ids = ids_of(inputs)
    assert ids is not None
    source = "input_ids"
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    visible = mask != 0 if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids) != 0
    texts, pieces = [], []
    for row, seen in zip(ids.tolist(), visible.tolist(), strict=True):
        places = [place for place, shown in enumerate(seen) if shown]
        text, found = _spelled(tokenizer, [row[place] for place in places])
        texts.append(text)
        pieces.append(tuple(p._replace(place=places[p.place], source=source) for p in found))
    decoder = inputs.get(DECODER) if isinstance(inputs, Mapping) else None
    if isinstance(decoder, Tensor) and decoder.dim() == 2:
        for row, given in enumerate(decoder.tolist()):
            more, found = spelled(tokenizer, given, len(texts[row]) + 1, DECODER)
            texts[row], pieces[row] = f"{texts[row]}\n{more}", pieces[row] + found
    return Tokenised(tuple(texts), tuple(pieces), inputs)


def _spelled(tokenizer: Any, ids: list[int]) -> tuple[str, tuple[Piece, ...]]:
    """The text of ids and its tokens: where the text gives these very ids again, as the tokenizer splits it."""
    if is_huggingface(tokenizer):
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        try:
            again = encode(tokenizer, text)
        except InvalidInput:
            again = None
        if again is not None and again.ids == ids:
            return text, again.pieces
    return spelled(tokenizer, ids)
