"""What the code of a model reads beside its modules: closures, globals and attributes of classes.

A captured graph holds such values as they were, so a change of them has to be noticed. The places where they stand are found
once for each function; at every call only the values at these places are looked at.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_SKIPPED = ("torch.", "numpy.", "builtins.", "math.", "functools.", "typing.", "collections.", "einops.")
"""Libraries whose functions and classes are taken to stay as they are."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the values stand that a function, and those of its own module that it calls, reads: `names` in mappings and
    `cells` of closures. `functions`: those that were found on the way, with their places; another one there is another reach."""

    names: tuple[tuple[Mapping[str, Any], str], ...]
    cells: tuple[CellType, ...]
    functions: tuple[tuple[Mapping[str, Any], str, Any], ...]

    def values(self) -> Iterator[Any]:
        """The values as they are now."""
        for place, name in self.names:
            yield place.get(name)
        yield from map(_content, self.cells)

    def holds(self) -> bool:
        """Whether the functions are those that were looked through."""
        return all(place.get(name) is function for place, name, function in self.functions)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled
        return None


_OF_CLASSES: weakref.WeakKeyDictionary[type, Reach] = weakref.WeakKeyDictionary()
_OF_FUNCTIONS: weakref.WeakKeyDictionary[Any, Reach] = weakref.WeakKeyDictionary()


def of_class(cls: type) -> Reach | None:
    """What the forward function of a class of modules reads; None for torch's own classes."""
    if _is_skipped(cls):
        return None
    known = _OF_CLASSES.get(cls)
    if known is None or not known.holds():
        known = _OF_CLASSES[cls] = _reach(cls.forward, cls)  # type: ignore[attr-defined]
    return known


def of_function(function: Any) -> Reach | None:
    """What a function reads; None where it is not written in Python, or a library's."""
    plain = _plain(function)
    if plain is None or _is_skipped(plain):
        return None
    known = _OF_FUNCTIONS.get(plain)
    if known is None or not known.holds():
        known = _OF_FUNCTIONS[plain] = _reach(plain, None)
    return known


def _reach(start: Any, owner: type | None) -> Reach:
    names: dict[tuple[int, str], tuple[Mapping[str, Any], str]] = {}
    cells: dict[int, CellType] = {}
    functions: list[tuple[Mapping[str, Any], str, Any]] = []
    seen: set[int] = set()

    def note(place: Mapping[str, Any], name: str, waiting: list[FunctionType], home: str | None) -> Any:
        value = place[name]
        names[id(place), name] = place, name
        function = _plain(value)
        if function is not None and not _is_skipped(function) and home in (None, function.__module__):
            functions.append((place, name, value))
            waiting.append(function)
        return value

    first = _plain(start)
    waiting = [] if first is None else [first]
    if owner is not None:
        _note_class(owner, "forward", lambda place, name: note(place, name, waiting, None))
    while waiting:
        function = waiting.pop()
        if id(function.__code__) in seen:
            continue
        seen.add(id(function.__code__))
        for cell in function.__closure__ or ():
            cells[id(cell)] = cell
            within = _plain(_content(cell))
            if within is not None and not _is_skipped(within):
                waiting.append(within)
        read = _names(function.__code__)
        for name in read:
            if owner is not None:
                _note_class(owner, name, lambda place, name: note(place, name, waiting, None))
            if name not in function.__globals__ or name.startswith("__"):
                continue
            value = note(function.__globals__, name, waiting, function.__module__)
            if isinstance(value, (type, ModuleType)) and not _is_skipped(value):
                for inner in read:
                    if inner in vars(value) and not inner.startswith("__"):
                        note(vars(value), inner, waiting, function.__module__)
    return Reach(tuple(names.values()), tuple(cells.values()), tuple(functions))


def _note_class(owner: type, name: str, note: Any) -> None:
    """Note the attribute of a class, or of the class that it inherits it from; dunders and torch's own left out."""
    if name.startswith("__"):
        return
    for base in owner.__mro__:
        if name in vars(base):
            if not _is_skipped(base):
                note(vars(base), name)
            return


def _plain(value: Any) -> FunctionType | None:
    """The Python function in a method, a property, a partial call, a cache or a decorator."""
    for _ in range(8):
        if isinstance(value, FunctionType):
            return value if not hasattr(value, "__wrapped__") else _plain(value.__wrapped__) or value
        if isinstance(value, (MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        else:
            value = getattr(value, "__wrapped__", None) or getattr(value, "func", None)
        if value is None:
            return None
    return None


def _names(code: CodeType) -> tuple[str, ...]:
    """The names that code reads, with those of the functions written within it."""
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _is_skipped(value: Any) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return not isinstance(module, str) or f"{module}.".startswith(_SKIPPED)
