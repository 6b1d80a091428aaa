"""The floors of the house, its doors, and what must hold in every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ivgcli"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"errors", "__init__"},
    {"console", "records", "recipes"},
    {"models", "serving", "objectives", "statistics", "figures", "workers"},
    {"scoring"},
    {"values"},
    {"decoding"},
    {"workflows"},
    {"judging", "reporting"},
    {"training"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

DOORS = {
    "typer": {"cli"},
    "rich": {"console", "cli"},
    "yaml": {"recipes"},
    "pydantic": {"recipes"},
    "pydantic_core": {"recipes"},
    "json": {"records", "models"},  # models read the configuration files that lie beside weights
    "datasets": {"records", "training"},
    "transformers": {"models", "scoring", "training", "judging"},
    "openai": {"serving", "judging"},
    "alpaca_eval": {"judging"},
    "pandas": {"judging"},
    "trl": {"training"},
    "peft": {"models", "training"},
    "matplotlib": {"figures"},
    "gguf": {"models"},
}

BANNED = {"utils", "helpers", "common", "misc", "manager"}
BANNED |= {"handler", "process", "data", "info", "do"}


def room(path: Path) -> str:
    """Return the file or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "ivgcli":
                yield from (f"ivgcli.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_go_through_their_door(path: Path) -> None:
    here = room(path)
    for name in imported_modules(path):
        library, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if library == "ivgcli" and there in FLOOR:  # else a name of the package itself
            assert there == here or FLOOR[there] < FLOOR[here], f"{here} may not import {there}"
        if library in DOORS:
            assert here in DOORS[library], f"{library} is only imported by {sorted(DOORS[library])}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_and_prints_keep_the_rules_of_the_house(path: Path) -> None:
    assert BANNED.isdisjoint(path.stem.split("_")), "the file's name says nothing"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert BANNED.isdisjoint(node.name.lower().split("_")), f"{node.name} says nothing"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            prints = node.func.id == "print" and room(path) not in ("console", "cli")
            assert not prints, f"line {node.lineno}: only the console and the command line print"


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} <= set(FLOOR)


@pytest.mark.parametrize("module", ["cli", "records", "recipes", "console", "errors"])
def test_the_ground_floors_load_without_torch(module: str) -> None:
    code = (
        f"import sys, ivgcli.{module}\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
