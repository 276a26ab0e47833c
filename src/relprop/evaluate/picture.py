"""Perturbation curves as a figure: one line a method, with the interval of its mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from relprop.errors import InvalidInput
from relprop.evaluate.comparison import Comparison
from relprop.evaluate.statistics import bootstrap
from relprop.show.layout import (
    FAINT,
    HAIR,
    HEAD,
    INK,
    NAME,
    SMALL,
    blank_page,
    line_height,
    printed,
    text_style,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from PIL import Image

LINES = (
    "#1b6ca8",
    "#d1495b",
    "#3d9970",
    "#b8860b",
    "#7d4fa3",
    "#5b6770",
    "#c45ab3",
    "#0f8b8d",
    "#8c564b",
    "#9aa400",
)
"""Colours that are told apart on white, in print and with red-green blindness by their lightness too; "random" is grey."""

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT, BETWEEN = 480, 400, 66, 64, 52, 20, 46

WORDS = {"morf": "most relevant first", "lerf": "least relevant first"}


def picture(comparison: Comparison, title: str = "", score: str = "score") -> Image.Image:
    """The mean curves of all methods, a panel for each order, with 95 % bootstrap intervals of the means.

    `title` stands above, wrapped where it is long; `score` names the axis. Raises `InvalidInput` where no curves were drawn.
    """
    ways = [way for way in WORDS if way in comparison.curves]
    if not ways:
        raise InvalidInput(
            "picture: no perturbation curves were drawn\n  do: compare by aopc_morf, aopc_lerf or abpc"
        )
    names = comparison.methods
    legend = 30 + max(text_width(name, NAME) for name in names)
    page_width = int(LEFT + len(ways) * WIDTH + (len(ways) - 1) * BETWEEN + RIGHT + legend + 16)
    heading = wrapped(title, page_width - LEFT - 16, HEAD, "bold")
    top = TOP + max(0, len(heading) - 1) * line_height(HEAD)
    page_height = top + HEIGHT + BOTTOM
    figure = blank_page(page_width, page_height)
    for number, line in enumerate(heading):
        figure.text(
            LEFT / page_width,
            1 - (18 + number * line_height(HEAD)) / page_height,
            line,
            va="top",
            **text_style(HEAD, fontweight="bold"),
        )
    x = 100 * np.asarray(comparison.fractions)
    means = {way: comparison.curves[way].mean(0) for way in ways}
    between = {
        (way, i): bootstrap(comparison.curves[way][:, i], 400) for way in ways for i in range(len(names))
    }
    ends = np.concatenate(
        [one.ravel() for one in (*means.values(), *(side for pair in between.values() for side in pair))]
    )
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    pad = 0.06 * (high - low or 1.0)
    for number, way in enumerate(ways):
        left = LEFT + number * (WIDTH + BETWEEN)
        axes = figure.add_axes(
            (left / page_width, BOTTOM / page_height, WIDTH / page_width, HEIGHT / page_height)
        )
        axes.set_xlim(float(x[0]), float(x[-1]))
        axes.set_ylim(low - pad, high + pad)
        axes.grid(True, color=HAIR, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(FAINT)
        axes.tick_params(colors=FAINT, labelsize=SMALL)
        for index, name in enumerate(names):
            colour = colour_of(names, name)
            least, most = between[way, index]
            if np.isfinite(least).all():
                axes.fill_between(x, least, most, color=colour, alpha=0.14, linewidth=0)
            axes.plot(
                x, means[way][index], color=colour, linewidth=1.8, linestyle="--" if name == "random" else "-"
            )
        figure.text(
            left / page_width,
            1 - (top - 12) / page_height,
            WORDS[way],
            va="bottom",
            **text_style(NAME, color=INK),
        )
        middle = (left + WIDTH / 2) / page_width
        figure.text(
            middle,
            12 / page_height,
            "regions replaced, %",
            ha="center",
            va="bottom",
            **text_style(SMALL, color=FAINT),
        )
    figure.text(16 / page_width, (BOTTOM + HEIGHT / 2) / page_height, score, rotation=90, ha="center", va="center", **text_style(SMALL, color=FAINT))  # fmt: skip
    start = page_width - legend - 8
    key = figure.add_axes(
        (start / page_width, BOTTOM / page_height, legend / page_width, HEIGHT / page_height)
    )
    key.set_axis_off()
    key.set_xlim(0, legend)
    key.set_ylim(HEIGHT, 0)
    for index, name in enumerate(sorted(names, key=lambda n: -float(means[ways[0]][names.index(n)].mean()))):
        at = 12 + 22 * index
        key.plot(
            [0, 20],
            [at, at],
            color=colour_of(names, name),
            linewidth=2.2,
            linestyle="--" if name == "random" else "-",
        )
        key.text(27, at, name, va="center", **text_style(NAME))
    return printed(figure)


def colour_of(names: tuple[str, ...], name: str) -> str:
    """The colour of a method's line."""
    if name == "random":
        return "#8a8a8a"
    others = [one for one in names if one != "random"]
    return LINES[others.index(name) % len(LINES)]
