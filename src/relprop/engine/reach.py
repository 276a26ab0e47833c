"""What the code of a model reads beside its modules: closures, globals and attributes of classes.

A captured graph holds such values as they were, so a change of them has to be noticed. The places where they stand are found
once for each function; at every call only the values at these places are looked at.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_SKIPPED = ("torch.", "numpy.", "builtins.", "math.", "functools.", "typing.", "collections.", "einops.")
"""Libraries whose functions and classes are taken to stay as they are."""


Holder = dict[str, Any] | type
"""Where a name stands: the names of a module of Python, or the attributes of a class."""


def read(holder: Holder, name: str) -> Any:
    """The value of a name; None where there is none."""
    return (vars(holder) if isinstance(holder, type) else holder).get(name)


def write(holder: Holder, name: str, value: Any) -> None:
    """Give a name its value."""
    if isinstance(holder, type):
        setattr(holder, name, value)
    else:
        holder[name] = value


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the values stand that a function, and those of its own module that it calls, reads: `names` in mappings and
    `cells` of closures. `functions`: those that were found on the way, with their places; another one there is another reach."""

    names: tuple[tuple[Holder, str], ...]
    cells: tuple[CellType, ...]
    functions: tuple[tuple[Holder, str, Any], ...]
    caches: tuple[Any, ...]  # functions that can be called and keep their results (functools.cache)

    def values(self) -> Iterator[Any]:
        """The values as they are now."""
        for place, name in self.names:
            yield read(place, name)
        yield from map(content, self.cells)

    def holds(self) -> bool:
        """Whether the functions are those that were looked through."""
        return all(read(place, name) is function for place, name, function in self.functions)


def content(cell: CellType) -> Any:
    """What a cell of a closure holds; None where it is not filled."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


_OF_CLASSES: weakref.WeakKeyDictionary[type, Reach] = weakref.WeakKeyDictionary()
_OF_FUNCTIONS: weakref.WeakKeyDictionary[Any, Reach] = weakref.WeakKeyDictionary()


def of_class(cls: type) -> Reach | None:
    """What the forward function of a class of modules reads; None for torch's own classes."""
    if _is_skipped(cls):
        return None
    known = _OF_CLASSES.get(cls)
    if known is None or not known.holds():
        known = _OF_CLASSES[cls] = _reach(held_by(cls, "forward"), cls)
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
    names: dict[tuple[int, str], tuple[Holder, str]] = {}
    cells: dict[int, CellType] = {}
    functions: list[tuple[Holder, str, Any]] = []
    seen: set[int] = set()

    def note(place: Holder, name: str, waiting: list[FunctionType], home: str | None) -> Any:
        value = read(place, name)
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
            within = _plain(content(cell))
            if within is not None and not _is_skipped(within):
                waiting.append(within)
        used = _names(function.__code__)
        for name in used:
            if owner is not None:
                _note_class(owner, name, lambda place, name: note(place, name, waiting, None))
            if name not in function.__globals__ or name.startswith("__"):
                continue
            value = note(function.__globals__, name, waiting, function.__module__)
            if isinstance(value, (type, ModuleType)) and not _is_skipped(value):
                for inner in used:
                    if inner in vars(value) and not inner.startswith("__"):
                        holder = value if isinstance(value, type) else vars(value)
                        note(holder, inner, waiting, function.__module__)
    found = Reach(tuple(names.values()), tuple(cells.values()), tuple(functions), ())
    return replace(found, caches=_caches([first, *found.values()]))


def _caches(values: list[Any]) -> tuple[Any, ...]:
    """Those of the functions, and of the ones that they call in whatever module, that keep their results."""
    waiting = list(values)
    seen: set[CodeType] = set()
    found: dict[int, Any] = {}
    while waiting and len(seen) < _LOOKED:
        value = waiting.pop()
        if isinstance(value, _CACHE):
            found[id(value)] = value
        function = _plain(value)
        if function is None or _is_skipped(function) or function.__code__ in seen:
            continue
        seen.add(function.__code__)
        waiting += [function.__globals__.get(name) for name in _names(function.__code__)]
        waiting += map(content, function.__closure__ or ())
    return tuple(found.values())


_LOOKED = 500  # functions


def _note_class(owner: type, name: str, note: Any) -> None:
    """Note the attribute of a class, or of the class that it inherits it from; dunders and torch's own left out."""
    base = None if name.startswith("__") else _base_with(owner, name)
    if base is not None and not _is_skipped(base):
        note(base, name)


def _plain(value: Any) -> FunctionType | None:
    """The Python function in a method, a property, a partial call, a cache or a decorator. Of other objects nothing is asked:
    an attribute of theirs may be code that runs, such as that of a module that is imported when it is first looked at."""
    for _ in range(8):
        if isinstance(value, FunctionType):
            wrapped = value.__dict__.get("__wrapped__")
            return value if wrapped is None else _plain(wrapped) or value
        if isinstance(value, (MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, (functools.partial, functools.cached_property)):
            value = value.func
        elif isinstance(value, _CACHE):
            value = value.__wrapped__
        else:
            return None
    return None


_CACHE = type(functools.cache(len))


def contents_of(value: Any) -> dict[str, Any] | None:
    """An object's own attributes, without running any code of its class."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def held_by(cls: type, name: str) -> Any:
    """An attribute of a class as it, or the class that it inherits it from, holds it."""
    base = _base_with(cls, name)
    return None if base is None else vars(base)[name]


def _base_with(cls: type, name: str) -> type | None:
    return next((base for base in cls.__mro__ if name in vars(base)), None)


def _names(code: CodeType) -> tuple[str, ...]:
    """The names that code reads, with those of the functions written within it."""
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _is_skipped(value: Any) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return not isinstance(module, str) or f"{module}.".startswith(_SKIPPED)


def _reaches(model: Any) -> Iterator[Reach]:
    """Of the classes of a model's modules, and of the functions that these hold."""
    classes = {type(module) for module in model.modules()}
    held = (value for module in model.modules() for value in vars(module).values() if callable(value))
    found = (*map(of_class, classes), *(of_function(value) for value in held if not isinstance(value, type)))
    return (reach for reach in found if reach is not None)


def places_of(model: Any) -> tuple[list[Any], list[tuple[Holder, str]], list[CellType], list[Any]]:
    """What a model's code can write to beside its modules: dictionaries, lists and sets; names; cells of closures; functions
    that keep their results."""
    found: dict[int, Any] = {}
    names: list[tuple[Holder, str]] = []
    cells: list[CellType] = []
    caches: list[Any] = []
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                _containers(value, found, _DEEP)
    for reach in _reaches(model):
        names += reach.names
        cells += reach.cells
        caches += reach.caches
        for value in reach.values():
            _containers(value, found, _DEEP)
    return list(found.values()), names, cells, caches


_DEEP = 4  # how far into containers and objects


def _containers(value: Any, found: dict[int, Any], depth: int) -> None:
    if (
        depth == 0
        or id(value) in found
        or isinstance(value, (type, ModuleType, str, bytes, int, float))
        or value is None
    ):
        return
    if isinstance(value, (dict, list, set)):
        found[id(value)] = value
    inner: Any = (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    )
    for part in list(inner)[:_MANY]:
        _containers(part, found, depth - 1)
    if not isinstance(value, (dict, list, set, tuple)) and (own := contents_of(value)) is not None:
        _containers(own, found, depth)


_MANY = 1000  # entries of a container that are looked into
