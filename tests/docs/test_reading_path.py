"""docs/reading-path.md: its example computes what it says, its lines are those of the code."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reading-path.md"
QUOTED = re.compile(r"In `([\w/]+\.py)`, `(\w+)`:\n\n```python\n(.*?)```", re.DOTALL)
QUOTES = QUOTED.findall(PAGE.read_text(encoding="utf-8"))


def test_the_ten_numbers_are_what_the_code_computes():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 10 and found.failed == 0


@pytest.mark.parametrize(("file", "function", "lines"), QUOTES)
def test_every_line_that_is_quoted_is_in_its_function(file, function, lines):
    source = (ROOT / file).read_text(encoding="utf-8")
    found = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == function]
    assert lines.strip() in (ast.get_source_segment(source, found[0]) or "")


def test_the_equations_are_quoted():
    assert len(QUOTES) >= 6


def plan_of(room: str) -> str:
    """The docstring in which a room lists its modules, in reading order."""
    return ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text("utf-8"))) or ""


def test_the_six_files_come_in_the_order_in_which_their_rooms_list_them():
    files = re.findall(r"^\| \d \| `reference/([\w/]+)\.py`", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(files) == 6
    rooms = plan_of("reference").replace("/ ", "  ")
    numbers = [rooms.index(f"    {file.split('/')[0]} ") for file in files]
    inner = [file.split("/")[1] for file in files if file.startswith("quantize/")]
    steps = [f"\n{plan_of('reference/quantize')}".index(f"\n{name} ") for name in inner]
    assert numbers == sorted(numbers) and steps == sorted(steps)
