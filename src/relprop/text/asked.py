"""Targets by name and by place in a text: from what a caller asks to classes and indices of the output."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from relprop.errors import InvalidInput
from relprop.targets import Contrast
from relprop.text.tokenizers import DECODER, Vocabulary, encode, is_huggingface, name_of
from relprop.text.tokens import Tokenised


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known where a target is resolved.

    Attributes:
        labels: the names of the model's classes; empty where they are not known.
        sizes: the sizes of the explained output, (B, C) or (B, T, V); empty where it has no one shape.
        text: the tokens of the inputs; None where they are no text.
        tokenizer: of any kind, or None.
        masked: whether the model fills gaps: the default place is then that of the mask token.
    """

    labels: tuple[str, ...]
    sizes: tuple[int, ...]
    text: Tokenised | None = None
    tokenizer: Any = None
    masked: bool = False

    @property
    def per_token(self) -> bool:
        """Whether the output has a row for each token of the text."""
        return self.text is not None and len(self.sizes) == 3

    def resolve(self, target: Any) -> Any:
        """The target in numbers: names become classes or token ids, positions count the tokens of each text.

        Raises `InvalidInput` for a name that no class or token has, and a position beyond the text.
        """
        if isinstance(target, Tensor) or callable(target):
            return target
        if isinstance(target, Contrast):
            return Contrast(self.resolve(target.a), self.resolve(target.b))
        if self.per_token:
            assert self.text is not None
            count = len(self.text.texts)
            rows = target if isinstance(target, list) else [target] * count
            if len(rows) != count:
                raise InvalidInput(
                    f"target: {len(rows)} targets for {count} texts\n  do: give one, or one a text"
                )
            return [self._place(row, one) for row, one in enumerate(rows)]
        if isinstance(target, list):
            return [self._named(one) for one in target]
        return self._named(target)

    def _named(self, target: Any) -> Any:
        """A class by its name; all else as it is."""
        return self._label(target) if isinstance(target, str) else target

    def _label(self, name: str) -> int:
        found = label_id(self.labels, name)
        if found is not None:
            return found
        if not self.labels:
            raise InvalidInput(
                f"target: {name!r} is a name, and the model's config names no classes\n  do: give the number of an output"
            )
        near = difflib.get_close_matches(name, self.labels, 3, 0.5) or list(self.labels[:8])
        more = " …" if len(self.labels) > len(near) else ""
        raise InvalidInput(f"target: no class is called {name!r}\n  do: one of {', '.join(near)}{more}")

    def _place(self, row: int, target: Any) -> Any:
        """An index into the output of one text: (place, token or label), or None for the largest."""
        position, wanted = target if isinstance(target, tuple) and len(target) == 2 else (None, target)
        labels = len(self.labels) == self.sizes[-1]
        if position is None and labels:
            raise InvalidInput(
                "target: the model labels every token, so that a position is needed\n"
                "  do: give (position, label); (position, None) means its largest label"
            )
        if isinstance(wanted, str):
            wanted = self._label(wanted) if labels else token_id(self.tokenizer, wanted)
        return (self._position(row, position), wanted)

    def _position(self, row: int, position: Any) -> int:
        """The place in the output of a position in a text: of the token there, or by default where it is asked for."""
        assert self.text is not None
        source = DECODER if DECODER in self.text.sources() else self.text.sources()[0]
        pieces = [piece for piece in self.text.pieces[row] if piece.source == source]
        if position is None and self.masked:
            return self._gap(row)
        position = -1 if position is None else position
        if isinstance(position, bool) or not isinstance(position, int):
            raise InvalidInput(
                f"target: {position!r} is no position in a text\n  do: give (position, token), such as (-1, {' Paris'!r})"
            )
        if not -len(pieces) <= position < len(pieces):
            raise InvalidInput(
                f"target: position {position} is beyond the text's {len(pieces)} tokens\n"
                f"  do: give {-len(pieces)} to {len(pieces) - 1}; -1 is the last"
            )
        return pieces[position].place

    def _gap(self, row: int) -> int:
        """The place of the one mask token of a text."""
        assert self.text is not None
        mask = getattr(self.tokenizer, "mask_token_id", None)
        inputs = self.text.inputs
        ids = inputs["input_ids"] if isinstance(inputs, dict) else inputs
        places = [place for place, number in enumerate(ids[row].tolist()) if number == mask]
        if len(places) == 1:
            return places[0]
        token = getattr(self.tokenizer, "mask_token", None) or "the mask token"
        raise InvalidInput(
            f"target: the model fills gaps, and the text has {len(places)} of them\n"
            f"  do: write {token} once in the text, or give target=(position, token)"
        )


def label_id(labels: Sequence[str], name: str) -> int | None:
    """The number of the class of that name, if need be in other case; None where there is none or several."""
    for names, wanted in ((list(labels), name), ([label.lower() for label in labels], name.strip().lower())):
        if names.count(wanted) == 1:
            return names.index(wanted)
    return None


def token_id(tokenizer: Any, text: str) -> int:
    """The id of the one token that a text is: " Paris", "▁Paris" as the vocabulary has it, "[MASK]".

    Raises `InvalidInput` where it is unknown, or more than one token.
    """
    if tokenizer is None:
        raise InvalidInput(
            f"target: {text!r} names a token, and no tokenizer is known\n  do: give its id, or tokenizer=…"
        )
    if isinstance(tokenizer, Vocabulary):
        found = tokenizer.table().get(text.strip().lower() if tokenizer.lower else text.strip())
        if found is None:
            raise InvalidInput(
                f"target: {text!r} is not in the vocabulary\n  do: give a word of it, or an id"
            )
        return found
    if not is_huggingface(tokenizer):
        ids = encode(tokenizer, text).ids
        return ids[0] if len(ids) == 1 else _several(text, [f"<{number}>" for number in ids])
    unknown = getattr(tokenizer, "unk_token_id", None)
    ids = [int(number) for number in tokenizer.encode(text, add_special_tokens=False)]
    spaced = text.startswith(" ")
    for spelling in [text] if not spaced else ["Ġ" + text[1:], "▁" + text[1:]]:
        if len(ids) == 1:
            break
        number = tokenizer.convert_tokens_to_ids(spelling)
        if isinstance(number, int) and number != unknown:
            ids = [number]
    if ids == [unknown] and text != tokenizer.unk_token:
        raise InvalidInput(f"target: {text!r} is not in the vocabulary\n  do: give another word, or an id")
    return ids[0] if len(ids) == 1 else _several(text, [name_of(tokenizer, number) for number in ids])


def _several(text: str, names: list[str]) -> int:
    shown = ", ".join(map(repr, names[:6])) or "none"
    raise InvalidInput(
        f"target: {text!r} is {len(names)} tokens ({shown})\n"
        f"  do: give one of them{'' if text.startswith(' ') else f', {chr(39)} {text}{chr(39)} with a space before it'}, or an id"
    )
