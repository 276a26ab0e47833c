"""The presets: composites as data. A new one is a row."""

from __future__ import annotations

from relprop.engine.plan import Composite
from relprop.engine.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    Product,
    Softmax,
    WSquare,
    ZBox,
    ZPlus,
)
from relprop.errors import InvalidInput

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

PRESETS: dict[str, Composite] = {}


def preset(name: str, about: str, *rules: object, fold: bool = True) -> None:
    """Add a row."""
    PRESETS[name] = Composite(rules, fold=fold, name=name, about=about)  # type: ignore[arg-type]


preset("auto", "first choice: γ in convolutions, ε in linear layers, norms and activations pass",
       ("convolution", Gamma(0.25)), ("linear", Epsilon()))  # fmt: skip
preset("epsilon", "ε in every linear operation (Bach et al. 2015)",
       ("weighted", Epsilon()))  # fmt: skip
preset("epsilon_plus", "z⁺ in convolutions, ε in linear layers",
       ("convolution", ZPlus()), ("linear", Epsilon()))  # fmt: skip
preset("epsilon_plus_flat", "z⁺ in convolutions, ε in linear layers, flat in the first",
       ("first", Flat()), ("convolution", ZPlus()), ("linear", Epsilon()))  # fmt: skip


def presets() -> dict[str, str]:
    """The names of all presets, with one line on each."""
    return {name: composite.about for name, composite in PRESETS.items()}


def named(name: str) -> Composite:
    """The preset of that name. Raises `InvalidInput` for an unknown one, with the names that there are."""
    if name not in PRESETS:
        raise InvalidInput(f"rules: no preset {name!r}\n  do: one of {', '.join(PRESETS)}")
    return PRESETS[name]


__all__ = ["IMAGENET", "PRESETS", "AlphaBeta", "Pass", "Product", "Softmax", "WSquare", "ZBox", "named", "preset", "presets"]
