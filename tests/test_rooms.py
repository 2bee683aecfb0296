"""Who may import whom: reference <- fast <- compare <- planish, and no room by another's name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from planish.reference.architectures import ENTRIES

ROOT = Path(__file__).parents[1]
ROOMS = ("reference", "fast", "compare", "pocket")
BELOW = {
    "reference": set(),
    "fast": {"reference"},
    "compare": {"reference", "fast"},
    "pocket": {"reference"},
    "planish": {"reference", "fast", "compare", "pocket"},
}


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as a.b.c."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", BELOW)
def test_no_arrow_leads_back(room):
    for file in (ROOT / room).rglob("*.py"):
        rooms = {name.split(".")[1] for name in imported(file) if name.startswith("planish.")}
        assert rooms & set(ROOMS) <= BELOW[room] | {room}, file


def test_no_room_is_imported_from_the_top():
    files = [file for room in (*BELOW, "tests") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 200
    for file in files:
        assert not {name.partition(".")[0] for name in imported(file)} & set(ROOMS), file


def guides():
    rooms = ("reference", "fast", "compare", "planish")
    return [file.parent for room in rooms for file in (ROOT / room).rglob("__init__.py")]


@pytest.mark.parametrize("room", guides(), ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_names_every_module_where_its_reader_begins(room):
    guide = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
    assert guide is not None
    words = set(re.findall(r"\w+", guide))
    modules = {path.stem for path in room.iterdir() if path.suffix == ".py"}
    packages = {path.parent.name for path in room.glob("*/__init__.py")}
    listed = set(ENTRIES) if room.name == "architectures" else set()  # by the code below it
    assert (modules | packages) - words - listed <= {"__init__", "__main__"}
