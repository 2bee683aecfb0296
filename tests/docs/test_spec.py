"""Every section of docs/spec.md that the code cites is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("reference", "fast", "compare", "planish", "pocket", "tests", "docs")
SUFFIXES = (".py", ".h", ".cc", ".md")
CITED = re.compile(r"\bSPEC (\d+(?:\.\d+)?(?:(?:, | and )\d+(?:\.\d+)?)*)")


def sections() -> set[str]:
    """1, 1.1, 1.2 ..: the headings, and the numbered rules below them."""
    found, section = set(), ""
    for line in (ROOT / "docs" / "spec.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## (\d+)\. ", line):
            section = heading[1]
            found.add(section)
        elif rule := re.match(r"(\d+)\. ", line):
            found.add(f"{section}.{rule[1]}")
    return found


def citations() -> list[tuple[str, str]]:
    """File and section, for every citation."""
    files = [p for room in ROOMS for p in (ROOT / room).rglob("*") if p.suffix in SUFFIXES]
    texts = {str(p.relative_to(ROOT)): " ".join(p.read_text("utf-8").split()) for p in files}
    return [
        (name, section)
        for name, text in sorted(texts.items())
        for cited in CITED.findall(text)
        for section in re.split(", | and ", cited)
    ]


def test_the_sections_are_those_of_the_spec():
    assert {"1", "1.5", "2", "9", "9.3"} <= sections() and "10" not in sections()


def test_the_code_cites_the_spec():
    assert len(citations()) > 20


@pytest.mark.parametrize(("file", "section"), sorted(set(citations())))
def test_every_section_that_is_cited_is_there(file, section):
    assert section in sections(), f"{file} cites SPEC {section}"
