"""The shape of the package: imports go one way, the public names are what they are, importing costs little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import relprop

SRC = Path(relprop.__file__).parent

ORDER = [
    "errors",
    "engine.graph",
    "engine.looks",
    "engine.step",
    "engine.rules",
    "engine.sizes",
    "engine.functional",
    "engine.parts",
    "engine.biases",
    "engine.curves",
    "engine.norms",
    "engine.joint",
    "engine.experts",
    "engine.ids",
    "engine.spectra",
    "engine.synonyms",
    "engine.canonise",
    "engine.ops.table",
    "engine.ops",
    "engine.layout",
    "engine.analyse",
    "engine.reach",
    "engine.isolate",
    "engine.shapes",
    "engine.standins",
    "engine.tape",
    "engine.exported",
    "engine.archive",
    "engine.frontends",
    "engine.batch",
    "engine.modules",
    "engine.programs",
    "engine.capture",
    "engine.signature",
    "engine.plan",
    "engine.presets",
    "engine.audit",
    "engine.propagate",
    "rules",
    "targets",
    "text.tokens",
    "text.words",
    "text.tokenizers",
    "text.asked",
    "text.opened",
    "text.read",
    "text",
    "store.schema",
    "store.group",
    "store.read",
    "store.write",
    "store.arrays",
    "store",
    "explanation",
    "classical.kernels",
    "classical.operations",
    "classical.steps",
    "classical.build",
    "classical.linear",
    "classical.machines",
    "classical.mixtures",
    "classical.clusters",
    "classical.transformers",
    "classical.words",
    "classical.local",
    "classical.images",
    "classical.compose",
    "classical.several",
    "classical.explained.nonzeros",
    "classical.explained.labels",
    "classical.explained.inputs",
    "classical.explained.estimator",
    "classical.explained",
    "classical",
    "explain.inputs",
    "explain.images",
    "explain.captured",
    "explain.finite",
    "explain.batches",
    "explain.seen",
    "explain.places",
    "explain.heads",
    "explain.conditions",
    "explain.steps",
    "explain.explainer",
    "explain.start",
    "explain.again",
    "explain.repeated",
    "explain.together",
    "explain",
    "contrast",
    "contextual",
    "differentiable",
    "gradients",
    "sampling",
    "deeplift",
    "patterns",
    "methods",
    "inside.ranking",
    "inside.weights",
    "inside.maximise",
    "inside.pairs",
    "inside",
    "generation",
    "show",
    "data",
    "audio",
    "models",
    "run.samples",
    "run.labels",
    "run.sources.files",
    "run.sources.arrays",
    "run.sources.tables",
    "run.sources.datasets",
    "run.sources.tars",
    "run.sources",
    "run.recipe",
    "run.rows",
    "run.trial",
    "run.local",
    "run.cluster",
    "run.whole",
    "run",
    "evaluate.arrays",
    "evaluate.curves",
    "evaluate.complexity",
    "evaluate.localisation",
    "evaluate.similarity",
    "evaluate.imputation",
    "evaluate.scoring",
    "evaluate.regions",
    "evaluate.replacements",
    "evaluate.perturb",
    "evaluate.subsets",
    "evaluate.stability",
    "evaluate.axioms",
    "evaluate.randomisation",
    "evaluate.statistics",
    "evaluate.cases",
    "evaluate.arithmetic",
    "evaluate.digits",
    "evaluate.scenes",
    "evaluate.planted",
    "evaluate.protocols",
    "evaluate.quantus",
    "evaluate.table",
    "evaluate.comparison",
    "evaluate.kept",
    "evaluate.compare",
    "evaluate.cost",
    "evaluate.picture",
    "evaluate",
    "analyse.domains",
    "analyse.documents",
    "analyse.result",
    "analyse.graph",
    "analyse.fisher",
    "analyse.projection",
    "analyse.maps",
    "analyse.places",
    "analyse.clustering",
    "analyse.embedding",
    "analyse.suspicion",
    "analyse.strategies",
    "analyse.confirming",
    "analyse.boxes",
    "analyse.context",
    "analyse.signs",
    "analyse.comparison",
    "analyse.words",
    "analyse.charts",
    "analyse.stored",
    "analyse.of_store",
    "analyse.table",
    "analyse",
    "show.samples",
    "show.report.figures",
    "show.report.gallery",
    "show.report.content",
    "show.report",
    "exchange.layout",
    "exchange.virelay",
    "exchange.corelay",
    "exchange.tables",
    "exchange.stored",
    "exchange",
    "view.state",
    "view.book",
    "view.compare",
    "view.figure",
    "view.guard",
    "view.names",
    "view.pages",
    "view.app",
    "view.serve",
    "view",
    "doctor.findings",
    "doctor.textbook",
    "doctor.patient",
    "doctor.checks",
    "doctor",
    "cli",
]
"""The files in the order data flows: each imports only from those above it."""

LAZY = {
    ("explain.explainer", "methods"),
    ("explanation", "show"),
    ("generation", "show"),
    ("explanation", "explain.again"),
    ("explanation", "inside"),
    ("explanation", "inside.ranking"),
    ("explanation", "inside.weights"),
    ("inside.maximise", "show"),
    ("inside.pairs", "show"),
    ("engine.step", "engine.rules"),
}
"""Imports within a function, where a table names what lies below it, or for a type alone."""


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(SRC).with_suffix("").parts)
    return name.removesuffix(".__init__")


def rank(module: str) -> int:
    """The place of a module, or of the longest package that holds it."""
    while module and module not in ORDER:
        module = module.rpartition(".")[0]
    assert module, "every file of the package has a place in ORDER"
    return ORDER.index(module)


def imports(path: Path) -> list[tuple[str, bool]]:
    """The package's own modules that a file imports, and whether at its top."""
    found: list[tuple[str, bool]] = []
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            parts = package.split(".") if package else []
            base = ".".join(parts[: len(parts) - node.level + 1])
            name = f"{base}.{node.module}" if node.module and base else node.module or base
        elif node.module == "relprop" or (node.module or "").startswith("relprop."):
            name = (node.module or "").removeprefix("relprop").removeprefix(".")
        else:
            continue
        names = [f"{name}.{alias.name}".lstrip(".") for alias in node.names]
        inner = [
            n
            for n in names
            if (SRC / Path(*n.split("."))).with_suffix(".py").exists() or (SRC / Path(*n.split("."))).is_dir()
        ]
        found += [(n, id(node) in top) for n in (inner or [name]) if n]
    return found


def test_every_file_imports_only_from_files_above_it() -> None:
    wrong = []
    for path in sorted(SRC.rglob("*.py")):
        module = module_of(path)
        if module in ("", "__init__", "__main__", "engine"):
            continue
        for name, at_top in imports(path):
            same_family = rank(name) == rank(module)
            allowed = (
                not at_top and (module.split(".")[0] if module.startswith("cli") else module, name) in LAZY
            )
            if not (rank(name) < rank(module) or same_family or allowed):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_public_names_are_exactly_those_listed() -> None:
    public = {
        name
        for name in dir(relprop)
        if not name.startswith("_") and not _is_submodule(getattr(relprop, name))
    }
    assert public | {"rules", "store", "presets"} == set(relprop.__all__) | {"presets"}
    assert relprop.__all__ == sorted(
        relprop.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )


def _is_submodule(value: object) -> bool:
    return getattr(value, "__name__", "").startswith("relprop.") and type(value).__name__ == "module"


def test_importing_relprop_loads_no_extra() -> None:
    code = (
        "import sys, relprop;"
        "print([m for m in ('matplotlib','PIL','typer','rich','torchvision','timm','zennit','captum','sklearn','scipy','sympy','transformers','onnx','keras','zarr','umap','pynndescent') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_error_about_input_says_what_to_do() -> None:
    """Of messages that end in words of their own; those that end in a value pass on what says so where it is written."""
    silent = []
    for file in SRC.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id
            if named not in ("InvalidInput", "MissingExtra", "RelpropError") or not call.args:
                continue
            pieces = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            words = "".join(str(one.value) for one in pieces if isinstance(one, ast.Constant))
            if isinstance(pieces[-1], ast.Constant) and "\n  do: " not in words:
                silent.append(f"{file.relative_to(SRC)}:{call.lineno}: {words}")
    assert not silent
