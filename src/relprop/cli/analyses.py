"""`relprop context`, `relprop compare` and `relprop words`: what stores say beside their clusters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relprop import store as stores
from relprop.analyse.boxes import read_boxes, read_classes
from relprop.analyse.charts import context_chart
from relprop.analyse.comparison import LEVEL, ModelComparison
from relprop.analyse.context import ContextRow
from relprop.analyse.stored import StoredContext, compare_stores, store_context, store_words
from relprop.analyse.words import SCORES
from relprop.cli import printing
from relprop.cli.options import JsonOption
from relprop.errors import InvalidInput
from relprop.show import save
from relprop.show.picture import check_packages, check_place

if TYPE_CHECKING:
    from PIL import Image

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="The folder that relprop run wrote.")]
TopOption = Annotated[int, typer.Option(metavar="N", min=1, help="How many lines are listed.")]


def context(
    store: StoreArgument,
    boxes: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A CSV file of boxes: file, class_name, x0, y0, x1, y1 in pixels of the photograph; files by their names alone.",
        ),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A CSV file that says which outputs of the model a class of boxes stands for: dog,151 152. Default: the"
            " output of the same name.",
            show_default=False,
        ),
    ] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Of signed relevance, as published, not of R⁺.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="A picture of it (.png, .jpg, .pdf).", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """How much does the model look at the surroundings? Relevance outside over inside the objects' boxes, class by class.

    \b
    Examples:
      relprop run --data photos/ --store store/
      relprop context store/ --boxes boxes.csv --classes coco_to_imagenet.csv -o context.png
    """
    with printing.reporting():
        if out is not None:
            check_place(out)
            check_packages()
        meant = None if classes is None else read_classes(classes)
        given, opened = read_boxes(boxes), stores.open(store)
        with printing.working("measuring"):
            found = store_context(opened, given, meant, pool="signed" if signed else "positive")
        if out is not None:
            save(_picture(found, opened), out)
        if json:
            printing.print_json("context", {"store": str(store), **found.as_dict()})
        else:
            print_context(found)


def _picture(found: StoredContext, opened: stores.Store) -> Image.Image:
    name = str((opened.attributes.get("model") or {}).get("name") or opened.path.name)
    title = f"How much {name} looks at the surroundings"
    least = min(5, max(row.used for row in found.use.rows) or 1)
    return context_chart({name: found.use}, least=least, title=title)


def print_context(found: StoredContext) -> None:
    """The table of classes, and what was left out."""
    head = ("class", "used", "dropped", "mean", "median", "95 % interval", "Σout/Σin", "share", "accuracy")
    rows = [_cells(row) for row in (*found.use.rows, found.use.overall)]
    printing.print_table(head, rows, head[1:], len(rows) - 1)
    for why, count in found.excluded.items():
        printing.print_field("left out", f"{count} samples: {why}")


def _cells(row: ContextRow) -> tuple[str, ...]:
    interval = "" if math.isnan(row.low) else f"{row.low:.3f} … {row.high:.3f}"
    values = (_number(v) for v in (row.mean, row.median))
    accuracy = "" if math.isnan(row.accuracy) else f"{row.accuracy:.1%}"
    return row.name, str(row.used), str(row.dropped), *values, interval, _number(row.how_much), _number(row.share), accuracy  # fmt: skip


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def compare(
    store: StoreArgument,
    other: Annotated[
        Path, typer.Argument(metavar="OTHER", help="The store of another model over the same data.")
    ],
    grid: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Pictures are compared in N × N cells, series in N² steps of time."
        ),
    ] = 8,
    level: Annotated[
        float,
        typer.Option(
            metavar="P", min=0, max=1, help="What counts as a difference: corrected p-values below this."
        ),
    ] = LEVEL,
    top: TopOption = 20,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the sign-flip test.")] = 0,
    json: JsonOption = False,
) -> None:
    """Two models on the same data: where do they agree, and where do their strategies differ for sure?

    Samples are matched by their ids. p-values are of the sign-flip test with the largest statistic: they hold for all places
    (cells, words, features) of all classes together.

    \b
    Examples:
      relprop run --data photos/ --model resnet18 --store first/
      relprop run --data photos/ --model resnet50 --store second/
      relprop compare first/ second/
    """
    with printing.reporting():
        opened = stores.open(store), stores.open(other)
        with printing.working("comparing"):
            found = compare_stores(*opened, grid=grid, seed=seed)
        if json:
            content = {"stores": [str(store), str(other)], "level": level, **found.as_dict()}
            printing.print_json("compare", content)
        else:
            print_comparison(found, level, top)


def print_comparison(found: ModelComparison, level: float, top: int) -> None:
    """The figures, a line a class, and the places where strategies differ."""
    first, second = found.names
    printing.print_field("models", f"{first} and {second}")
    printing.print_field(
        "samples", f"{found.samples}, of which {found.compared} explained for the same target"
    )
    printing.print_field("agreement", f"{found.agree:.1%} have the same prediction")
    if not math.isnan(found.accuracy[0]):
        told = f"{found.accuracy[0]:.1%} and {found.accuracy[1]:.1%}, McNemar p = {found.mcnemar:.2g}"
        printing.print_field("accuracy", told)
    printing.print_gap()
    head = (
        "class",
        "samples",
        "Spearman",
        "95 % interval",
        "shared",
        f"most for {first}",
        f"most for {second}",
    )
    rows = [
        (
            one.group,
            str(one.count),
            _number(one.similarity),
            "" if math.isnan(one.low) else f"{one.low:.3f} … {one.high:.3f}",
            "" if math.isnan(one.overlap) else f"{one.overlap:.0%}",
            "; ".join(name for name, _ in one.first[:3]),
            "; ".join(name for name, _ in one.second[:3]),
        )
        for one in sorted(found.classes, key=lambda one: -one.count)[:top]
    ]
    printing.print_table(head, rows, head[1:5])
    if len(found.classes) > top:
        printing.print_field("", f"and {len(found.classes) - top} classes more")
    sure = found.different(level)
    printing.print_gap()
    tested = len({one.group for one in found.contrasts})
    words = f"{len(sure)} of {len(found.contrasts)} places of {tested} classes (corrected p < {level:g})"
    printing.print_field("differ", words)
    if sure:
        columns = ("class", "where", first, second, "p", "samples")
        lines = [(one.group, one.name, f"{one.first:+.4f}", f"{one.second:+.4f}", f"{one.p:.2g}", str(one.count)) for one in sure[:top]]  # fmt: skip
        printing.print_table(columns, lines, columns[2:])
    elif not found.contrasts:
        printing.print_field("", "no class has the six samples that a difference could be shown on")


def words(
    store: StoreArgument,
    other: Annotated[
        Path | None,
        typer.Option(
            "--other",
            metavar="STORE",
            help="Another model's store of the same texts: marks the words that its list has too.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        str, typer.Option(metavar="|".join(SCORES), help="How a word's occurrences become one value.")
    ] = "max",
    least: Annotated[
        int, typer.Option(metavar="N", min=1, help="Words in fewer texts of the class are left out.")
    ] = 3,
    top: TopOption = 10,
    json: JsonOption = False,
) -> None:
    """The most relevant words of each class over a store of texts.

    \b
    Examples:
      relprop run --data reviews.csv --model FOLDER --store store/
      relprop words store/ --score mean --top 20
    """
    with printing.reporting():
        opened, second = stores.open(store), None if other is None else stores.open(other)
        found = store_words(opened, score=score, least=least, most=top, other=second)
        if not any(found.values()):
            raise InvalidInput(
                f"words: no word is in {least} texts of a class of {store}\n  do: a smaller --least"
            )
        if json:
            listed = {
                name: [{f: getattr(row, f) for f in row.__dataclass_fields__} for row in rows]
                for name, rows in found.items()
            }
            printing.print_json("words", {"store": str(store), "score": score, "classes": listed})
            return
        head = ("class", "word", score, "mean", "occurrences", "texts", *(("shared",) if second else ()))
        lines = [
            (name if i == 0 else "", row.word, f"{row.score:.4g}", f"{row.mean:.4g}", str(row.occurrences), str(row.documents),
             *(("yes" if row.shared else "",) if second else ()))
            for name, rows in found.items() for i, row in enumerate(rows)
        ]  # fmt: skip
        printing.print_table(head, lines, head[2:6])
