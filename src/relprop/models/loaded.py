"""A network ready to explain, with what it takes and gives."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relprop.data import Preprocessing
from relprop.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network, ready to explain, and what it takes and gives.

    Attributes:
        model: the module, in eval mode, or the exported program.
        name: its name for people.
        weights: where the weights come from.
        preprocessing: from a photograph to its input.
        classes: the names of its outputs in their order; empty where they are not known.
    """

    model: Any
    name: str
    weights: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: tuple[str, ...] = ()

    def dtype(self) -> torch.dtype:
        """The real type of its weights."""
        held = (
            self.model.parameters() if isinstance(self.model, nn.Module) else self.model.state_dict.values()
        )
        return next((weight.dtype for weight in held if weight.is_floating_point()), torch.float32)

    def class_name(self, index: int) -> str:
        """The name of an output, or "class 7"."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def target(self, text: str | None) -> int | tuple[int, ...] | None:
        """The target that a user names: a number, several ("3,10,10", an index), or the name of a class.

        Raises `InvalidInput` for a name that no class or more than one has.
        """
        if text is None:
            return None
        parts = text.split(",")
        if all(part.strip().removeprefix("-").isdecimal() for part in parts):
            numbers = tuple(int(part) for part in parts)
            return numbers[0] if len(numbers) == 1 else numbers
        if not self.classes:
            raise InvalidInput(
                f"target: {text!r} is no number, and the names of this model's classes are not known\n"
                "  do: give the number of an output, or the names with --classes FILE (one a line)"
            )
        wanted, lower = text.strip().lower(), [name.lower() for name in self.classes]
        matches = [i for i, name in enumerate(lower) if name == wanted]
        matches = matches or [i for i, name in enumerate(lower) if wanted in name]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            near = difflib.get_close_matches(wanted, lower, 3, 0.6)
            hint = (
                f"did you mean {listed([repr(self.classes[lower.index(n)]) for n in near], 3)}?"
                if near
                else "give a number"
            )
            raise InvalidInput(f"target: no class is called {text!r}\n  do: {hint}")
        names = listed([f"{self.classes[i]} ({i})" for i in matches], 6)
        raise InvalidInput(f"target: {text!r} names several classes: {names}\n  do: give the number of one")

    def check_names_of(self, output: Tensor) -> None:
        """`check_names` of the columns of an output (B, C); nothing of any other output."""
        if output.dim() == 2:
            check_names(self.classes, output.shape[1])


def check_names(classes: Sequence[str], outputs: int) -> None:
    """Raise `InvalidInput` where the names of classes are not as many as the outputs: a list of another model's names them wrongly."""
    if classes and len(classes) != outputs:
        raise InvalidInput(
            f"classes: {len(classes)} names for {outputs} outputs\n  do: give the names of this model's outputs, one a line, in their order"
        )


def meant(names: Sequence[str]) -> str:
    """The line of an error that names what may be meant."""
    return f"\n  do: one of {listed(names, 6)}" if names else "\n  do: look at how it is written"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
