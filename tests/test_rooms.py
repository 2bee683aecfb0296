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


def inner_room(module: str) -> str:
    """planish.reference.model.rope -> reference.model: what stands directly in a room."""
    return ".".join(module.split(".")[1:3])


def arrows() -> dict[str, set[str]]:
    """Which inner room imports which others, over the whole house."""
    found: dict[str, set[str]] = {}
    for room in BELOW:
        for file in (ROOT / room).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            here = inner_room(".".join(parts if parts[0] == "planish" else ("planish", *parts)))
            there = {inner_room(name) for name in imported(file) if name.count(".") > 1}
            found.setdefault(here, set()).update(there - {here})
    return found


def test_the_house_has_no_cycle():
    """Not between rooms, and not between what stands in them: each is read before its users."""
    rest = arrows()
    assert len(rest) > 20
    while rest:
        ready = {room for room, names in rest.items() if not names & set(rest)}
        assert ready, {room: names & set(rest) for room, names in rest.items()}
        rest = {room: names for room, names in rest.items() if room not in ready}
