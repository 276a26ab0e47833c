"""The report: one self-contained HTML file about the strategies of a model; nothing in it is loaded from elsewhere."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relprop.analyse import Analysis
from relprop.errors import InvalidInput, MissingExtra
from relprop.show import picture
from relprop.show.picture import whole
from relprop.show.report.content import Content, content, fewer
from relprop.store import Store
from relprop.store import open as open_store

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["LARGEST", "report", "report_html"]

LARGEST = 15_000_000
"""The most bytes of a report; classes that would make it larger are in its table only, and it says so."""

HERE = Path(__file__).parent


def report(store: Store | str | Path, analysis: Analysis, path: str | os.PathLike[str]) -> Path:
    """Write the report of an analysed store as one HTML file, whole or not at all, and return its path.

    Args:
        store: the store, or its folder.
        analysis: what `relprop.analyse.spray` found in it.
        path: the file, which ends in .html.

    Raises:
        InvalidInput: the path has another ending, its folder is not there, or the analysis is of another store.
        MissingExtra: matplotlib, pillow or jinja2 is not installed.
    """
    target = check_place(path)
    page = report_html(store, analysis).encode("utf-8")
    with whole(target) as file:
        file.write(page)
    return target


def check_place(path: str | os.PathLike[str]) -> Path:
    """Where `report` would write to. Raises `InvalidInput` where it could not."""
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InvalidInput(
            f"report: {str(path)!r} does not end in .html\n  do: give a file such as report.html"
        )
    if not target.parent.is_dir():
        raise InvalidInput(
            f"report: there is no folder {str(target.parent)!r}\n  do: create it first, or choose another path"
        )
    return target


def check_packages() -> None:
    """Raise `MissingExtra` where no report can be made, as matplotlib, pillow or jinja2 is not installed."""
    _template()
    picture.check_packages()


def report_html(store: Store | str | Path, analysis: Analysis, *, largest: int = LARGEST) -> str:
    """The report as the text of an HTML page of at most `largest` bytes. Raises as `report` does."""
    opened = store if isinstance(store, Store) else open_store(store)
    found = content(opened, analysis)
    page = _rendered(found)
    while len(page.encode("utf-8")) > largest:
        smaller = fewer(found, len(page.encode("utf-8")) / largest)
        if smaller == found:
            break
        found = smaller
        page = _rendered(found)
    return page


def _rendered(found: Content) -> str:
    style = (HERE / "style.css").read_text(encoding="utf-8")
    return _template().render(r=found, style=style)


@lru_cache(maxsize=1)
def _template() -> Template:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra("reports need jinja2\n  do: pip install 'relprop[show]'") from error
    places = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"percent": percent, "amount": amount, "count": "{:,}".format}
    places.filters.update(filters)
    return places.get_template("page.html.jinja")


def percent(value: float) -> str:
    """A share in percent; a dash where there is none."""
    return (
        "–"
        if value != value
        else f"{100 * value:.0f} %"
        if value >= 0.1 or value == 0
        else f"{100 * value:.1f} %"
    )


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def amount(value: float) -> str:
    """A figure of three digits with a proper minus and power of ten; a dash where there is none."""
    if value != value:
        return "–"
    digits, _, power = f"{value:.3g}".partition("e")
    return digits.replace("-", "−") + (f"·10{str(int(power)).translate(SUPERSCRIPT)}" if power else "")
