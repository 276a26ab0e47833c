"""Published protocols by name: what is perturbed, how far, by what, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relprop.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol of a paper.

    Attributes:
        about: what it is, in one line.
        methods, metrics: that are compared.
        perturbation: options of `perturb`.
        data: what it runs on where no data is given.
    """

    about: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    perturbation: Mapping[str, Any]
    data: str | None = None


PROTOCOLS: dict[str, Protocol] = {
    "samek2017": Protocol(
        "region perturbation (Samek et al. 2017): 9 × 9 regions, 100 steps, uniform noise, the class's logit, most and least relevant first",
        ("lrp", "sensitivity", "gradient_x_input", "integrated_gradients", "random"),
        ("aopc_morf", "aopc_lerf", "abpc"),
        {"regions": 9, "size": 1, "steps": 100, "replacement": "uniform", "draws": 5, "score": "logit"},
    ),
    "bach2015": Protocol(
        "pixel flipping (Bach et al. 2015): single pixels of digits in [−1, 1] change their sign, the most relevant first",
        ("lrp", "sensitivity", "random"),
        ("aopc_morf", "aopc_lerf", "abpc"),
        {
            "regions": "pixels",
            "size": 1,
            "replacement": "invert",
            "bounds": (-1.0, 1.0),
            "score": "probability",
        },
        "digits",
    ),
    "arras2019": Protocol(
        "LSTMs that add or subtract two marked numbers (Arras et al. 2019): correlation of relevance with the truth",
        ("lrp:lrp_all", "lrp:lrp_half", "lrp:lrp_prop", "gradient_x_input", "occlusion"),
        (),
        {},
        "arithmetic",
    ),
}
"""The protocols by name."""


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `InvalidInput` for an unknown one."""
    if name not in PROTOCOLS:
        raise InvalidInput(f"protocol: {name!r} is unknown\n  do: one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
