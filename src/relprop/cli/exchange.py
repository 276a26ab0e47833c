"""`relprop export` and `relprop import`: stores and their clusters for other software, and ViRelAy's projects as stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from relprop import exchange
from relprop import store as stores
from relprop.analyse.result import Analysis, load
from relprop.cli import printing
from relprop.cli.analyses import StoreArgument
from relprop.cli.options import JsonOption
from relprop.errors import InvalidInput

COLUMNS = ("target", "label", "score", "gap", "source")
"""Columns of the store that a table of strategies has too."""


def export(
    store: StoreArgument,
    virelay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a project that ViRelAy opens: a new folder with project.yaml.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write which sample has which strategy as a table (.csv, .parquet).",
            show_default=False,
        ),
    ] = None,
    analysis: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder that relprop analyse wrote. Default: STORE.analysis, where it is there; without an analysis a"
            " ViRelAy project has no clusters.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        int | None, typer.Option(metavar="N", help="Of this class alone.", show_default=False)
    ] = None,
    strategy: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of this strategy of it alone, by its number in the report.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Hand a store and its clusters to other software.

    A store itself is a Zarr v3 group: xarray.open_zarr(STORE, consolidated=False) opens it as it is.

    \b
    Examples:
      relprop analyse store/
      relprop export store/ --virelay project/
      relprop export store/ --table suspects.csv --target 7 --strategy 1
    """
    with printing.reporting():
        if virelay is None and table is None:
            raise InvalidInput("export: to where?\n  do: give --virelay DIR or --table FILE")
        opened = stores.open(store)
        beside = opened.path.with_name(f"{opened.path.name}.analysis")
        place = beside if analysis is None and beside.exists() else analysis
        if table is not None and place is None:
            raise InvalidInput(
                "export: a table is of strategies\n  do: relprop analyse the store first, or give --analysis DIR"
            )
        held = None if place is None else load(place)
        written: dict[str, Any] = {}
        if held is not None:
            _belongs(opened, held)
        if virelay is not None:
            with printing.working("writing the project"):
                written["virelay"] = str(exchange.export_virelay(opened, virelay, held))
        if table is not None and held is not None:
            columns = {name: opened.column(name) for name in COLUMNS}
            rows = exchange.strategy_rows(
                held, list(opened.column("id")), target=target, strategy=strategy, columns=columns
            )
            written["table"] = str(exchange.save_table(rows, table))
            written["samples"] = len(rows["row"])
        if json:
            printing.print_json("export", {"store": str(store), **written})
            return
        if "virelay" in written:
            printing.print_field("project", f"{written['virelay']}; open it by: virelay {written['virelay']}")
        if "table" in written:
            printing.print_field("table", f"{written['table']}, {written['samples']} samples")


def _belongs(opened: stores.Store, held: Analysis) -> None:
    last = max((int(one.rows.max()) for one in held.classes), default=-1)
    if last >= len(opened):
        raise InvalidInput(
            f"analysis: it speaks of sample {last}, and {opened.path} has {len(opened)}\n  do: give the analysis of this store"
        )


def import_(
    project: Annotated[
        Path, typer.Argument(metavar="PROJECT", help="The project.yaml of a ViRelAy project, or its folder.")
    ],
    store: Annotated[
        Path, typer.Option("--store", "-s", metavar="DIR", help="The store to write: a new folder.")
    ],
    analysis: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the project's clusters go; a new folder. Default: they are not kept.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a store of a ViRelAy project, as CoRelAy and ViRelAy write it.

    \b
    Examples:
      relprop import project/project.yaml --store store/ --analysis analysis/
    """
    with printing.reporting():
        if analysis is not None and analysis.exists():
            raise InvalidInput(f"{analysis}: is there already\n  do: give a new folder")
        with printing.working("reading the project"):
            file = project / "project.yaml" if project.is_dir() else project
            made, found = exchange.import_virelay(file, store)
            kept = found.save(analysis) if analysis is not None and found is not None else None
        classes = 0 if found is None else len(found.classes)
        if json:
            content = {
                "store": str(store),
                "samples": len(made),
                "classes": classes,
                "analysis": kept and str(kept),
            }
            printing.print_json("import", content)
            return
        printing.print_field("store", f"{store}, {len(made)} samples")
        told = (
            f"of {classes} classes, in {kept}" if kept else f"of {classes} classes, not kept (--analysis DIR)"
        )
        printing.print_field("clusters", told if classes else "the project has none")
