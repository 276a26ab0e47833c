"""`relprop analyse`: the strategies in a store, the suspicious ones first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from relprop.analyse import FLAGGED, Analysis, ClassAnalysis, Cluster
from relprop.analyse.embedding import EMBEDDINGS
from relprop.analyse.maps import NORMS, SIGNS
from relprop.analyse.of_store import check_same, confirm_store, folder_of, spray_store, too_small
from relprop.analyse.strategies import Settings
from relprop.cli import printing
from relprop.cli.options import (
    ClassesOption,
    DeviceOption,
    JsonOption,
    MeanOption,
    SizeOption,
    StdOption,
    WeightsOption,
    numbers,
)
from relprop.errors import InvalidInput
from relprop.run import Recipe, prepared
from relprop.show.report import check_packages, check_place, report
from relprop.store import PENDING, Store
from relprop.store import open as open_store

DEFAULT = Settings()
LISTED = 8
"""Suspects that are printed."""


def analyse(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A folder that relprop run wrote.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where the result goes. Default: STORE.analysis; the store itself is only read.", show_default=False),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Where the report goes. Default: report.html in the result's folder.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME|FILE|MODULE:CALLABLE", help="The store's model, as for relprop run: with --data, suspected artefacts are confirmed.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="PATH", help="The store's data, as for relprop run.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--class", metavar="N|NAME", help="Only this class; may be given several times.", show_default=False)
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="All samples as one group, whatever their class. Default: where no class has enough samples, and all together do.")
    ] = False,
    correct: Annotated[bool, typer.Option("--correct", help="Only samples whose target is their label.")] = False,
    side: Annotated[int, typer.Option(metavar="CELLS", min=0, help="Maps are pooled to at most so many cells a side; 0: not at all.")] = DEFAULT.side or 0,
    sign: Annotated[str, typer.Option(metavar="|".join(SIGNS), help="What of the relevance is used.")] = DEFAULT.sign,
    norm: Annotated[str, typer.Option(metavar="|".join(NORMS), help="What each map is divided by.")] = DEFAULT.norm,
    neighbours: Annotated[int, typer.Option(metavar="K", min=1, help="Nearest neighbours in the graph.")] = DEFAULT.neighbours,
    most: Annotated[int, typer.Option(metavar="N", min=2, help="The largest number of strategies in a class.")] = DEFAULT.most,
    places: Annotated[bool, typer.Option("--places/--no-places", help="Let a suspicious place that divides a class have a say; without it SpRAy as published.")] = DEFAULT.places,
    embedding: Annotated[str, typer.Option(metavar="|".join(EMBEDDINGS), help="The layout for looking at.")] = DEFAULT.embedding,
    smallest: Annotated[int, typer.Option(metavar="N", min=6, help="Classes of fewer samples are left out, and named.")] = DEFAULT.smallest,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of all draws.")] = DEFAULT.seed,
    weights: WeightsOption = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    classes: ClassesOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Find what the model really learned: its strategies class by class, and which look like artefacts.

    Printed are the strategies (clusters of relevance) by suspicion with the evidence, numbered as in the report and the
    browser, and the classes by clusterability; the report has the pictures.
    With --model and --data the suspected place is put into clean samples and taken out of affected ones.

    \b
    Examples:
      relprop analyse maps.zarr
      relprop analyse maps.zarr --model nets:make --data photos/
      relprop analyse maps.zarr --class horse --embedding tsne --json
    """
    with printing.reporting():
        if (model is None) != (not data):
            raise InvalidInput(
                "confirm: needs both the model and the data\n  do: give --model and --data as for relprop run"
            )
        held = open_store(store)
        folder = out or folder_of(store)
        if page is not None:
            check_place(page)
        _check_folder(folder)
        check_packages()
        chosen = None if only is None else [_class(held, name) for name in only]
        alone = chosen is not None or correct
        if together and alone:
            raise InvalidInput("together: all samples are one group\n  do: leave out --class and --correct")
        if not together and not alone and too_small(held, smallest):
            printing.say(
                f"note: no class has the {smallest} samples that one needs by itself (--smallest), so all are analysed together",
                "yellow",
            )
            together = True
        if together and model is not None:
            raise InvalidInput(
                "confirm: a mark is put into samples of other classes, and here all are together\n"
                "  do: leave out --model and --data, or explain more samples a class"
            )
        task = None
        if model is not None and data:
            recipe = Recipe(
                model=model, data=data[0] if len(data) == 1 else data, weights=weights, size=size, device=device,
                mean=numbers("mean", mean), std=numbers("std", std), classes=classes,
            )  # fmt: skip
            with printing.working(f"loading {model}, listing the data"):
                task = prepared(recipe)
            check_same(held, task)
        tell_unfinished(held)
        with printing.progress() as bar:
            shown = bar.add_task("analysing", total=None)

            def show(name: str, number: int, count: int) -> None:
                bar.update(shown, description=name, completed=number, total=count)

            analysis = spray_store(
                held, classes=chosen, correct=correct, together=together, progress=show, side=side or None, sign=sign, norm=norm,
                neighbours=neighbours, most=most, places=places, embedding=embedding, smallest=smallest, seed=seed,
            )  # fmt: skip
        analysis.save(folder)
        if task is not None:
            with printing.working("confirming"):
                analysis = confirm_store(held, analysis, task, seed=seed)
            analysis.save(folder)
        written = report(held, analysis, page or folder / "report.html")
        if json:
            printing.print_json("analyse", {**as_json(analysis), "out": str(folder), "report": str(written)})
        else:
            print_analysis(held, analysis)
            printing.print_field("result", str(folder))
            printing.print_field("report", str(written))


def tell_unfinished(store: Store) -> None:
    """Say that a store is half written, where it is; of one without any sample what follows says so."""
    missing = int((store.status == PENDING).sum())
    if 0 < missing < len(store):
        printing.say(
            f"note: {missing:,} of {len(store):,} samples are not explained yet (relprop run --resume goes on); this is of the others",
            "yellow",
        )


def _check_folder(folder: Path) -> None:
    """Refuse a place where the result cannot be written, before it is computed."""
    there = next(one for one in (folder.parent, *folder.absolute().parents) if one.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InvalidInput(
            f"result: {folder} cannot be written ({error.strerror})\n  do: give another folder by --out"
        ) from error


def _class(store: Store, name: str) -> int:
    """The number of a class by its number or name."""
    if name.lstrip("-").isdigit():
        return int(name)
    if name in store.classes:
        return store.classes.index(name)
    named = (
        f", or one of {', '.join(store.classes[:5])} …"
        if store.classes
        else "; the store has no names of classes"
    )
    raise InvalidInput(f"class: {name!r} is none of the store's\n  do: give its number{named}")


def print_analysis(store: Store, analysis: Analysis) -> None:
    """The suspects with their evidence, and the classes."""
    flagged = analysis.flagged
    rows = [
        (
            one.name, str(cluster.number + 1), f"{cluster.size} ({100 * cluster.share:.0f} %)", f"{cluster.suspicion:.2f}",
            "flagged" if cluster.flagged else "", _confirmed(cluster),
        )
        for one, cluster in analysis.suspects[: max(LISTED, len(flagged))]
    ]  # fmt: skip
    printing.print_table(
        ("class", "strategy", "samples", "suspicion", "", "confirmed"),
        rows,
        ("strategy", "samples", "suspicion"),
    )
    for one, cluster in flagged or analysis.suspects[:1]:
        printing.print_gap()
        printing.print_field(one.name, f"strategy {cluster.number + 1}, suspicion {cluster.suspicion:.2f}")
        for piece in cluster.evidence:
            printing.print_field("", piece.words)
        if cluster.confirmation is not None:
            printing.print_field("", cluster.confirmation.words)
        elif cluster.unconfirmed:
            printing.print_field("", f"Not put to the test: {cluster.unconfirmed}.")
    printing.print_gap()
    head = ("class", "samples", "strategies", "clusterability", "λ₂", "z", "suspicion")
    table = [
        (
            one.name, str(len(one.rows)), str(one.clusters_number), f"{one.clusterability:.3g}", f"{one.eigenvalues[1]:.3f}",
            f"{one.null['eigenvalue_2_z']:.1f}", f"{one.suspicion:.2f}",
        )
        for one in analysis.classes
    ]  # fmt: skip
    printing.print_table(head, table, head[1:])
    printing.print_gap()
    if not flagged:
        printing.print_field("flagged", f"nothing (from a suspicion of {FLAGGED} on)")
    for target, why in analysis.refused.items():
        printing.print_field("left out", f"{store.class_name(target)}: {why}")


def _confirmed(cluster: Cluster) -> str:
    """What an experiment said of a cluster, in a word; nothing where none was asked for."""
    if cluster.confirmation is not None:
        return "yes" if cluster.confirmation.confirmed else "no"
    return "untried" if cluster.unconfirmed else ""


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis as plain values, without its arrays."""
    return {
        "flagged": len(analysis.flagged),
        "suspects": [_suspect(one, cluster) for one, cluster in analysis.suspects],
        "classes": [
            {
                "class": one.target,
                "name": one.name,
                "samples": len(one.rows),
                "strategies": one.clusters_number,
                "strategies_by_eigengap": one.gap_number,
                "clusterability": one.clusterability,
                "eigenvalues": [float(value) for value in one.eigenvalues],
                **one.null,
            }
            for one in analysis.classes
        ],
        "refused": {str(target): why for target, why in analysis.refused.items()},
        "settings": dict(analysis.settings),
    }


def _suspect(one: ClassAnalysis, cluster: Cluster) -> dict[str, Any]:
    place, found = cluster.place, cluster.confirmation
    return {
        "class": one.target,
        "name": one.name,
        "strategy": cluster.number + 1,
        "samples": cluster.size,
        "suspicion": cluster.suspicion,
        "flagged": cluster.flagged,
        "place": None if place is None else {n: getattr(place, n) for n in ("top", "left", "bottom", "right")},
        "evidence": [{n: _number(getattr(e, n)) for n in ("name", "value", "usual", "words")} for e in cluster.evidence],
        "exemplars": cluster.exemplars.tolist(),
        "confirmed": None if found is None else found.confirmed,
        "confirmation": None if found is None else found.words,
        "unconfirmed": cluster.unconfirmed or None,
    }  # fmt: skip


def _number(value: Any) -> Any:
    """NaN as nothing, which JSON has a word for."""
    return None if isinstance(value, float) and value != value else value
