"""docs/reading-path.md: its example computes what it says, its lines are those of the code."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reading-path.md"
QUOTED = re.compile(r"In `([\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
QUOTES = QUOTED.findall(PAGE.read_text(encoding="utf-8"))


def test_the_ten_numbers_are_what_the_code_computes():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 10 and found.failed == 0


@pytest.mark.parametrize(("file", "lines"), QUOTES)
def test_every_line_that_is_quoted_is_in_its_file(file, lines):
    assert lines in (ROOT / file).read_text(encoding="utf-8")


def test_the_equations_are_quoted():
    assert len(QUOTES) >= 6
