"""Every check of docs/serving.md is held by tests that exist, or is measured by the benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
CHECK = re.compile(r"^\| (\d+) \| .* \| (.*) \|$", re.MULTILINE)
HELD = re.compile(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)")
CHECKS = {int(number): held for number, held in CHECK.findall(PAGE)}
MEASURED = (25, 26)


def test_all_checks_are_there():
    assert list(CHECKS) == list(range(1, 46))


def test_every_check_names_tests_that_exist():
    for number, held in CHECKS.items():
        if number in MEASURED:
            continue
        files = HELD.findall(held)
        assert files, number
        for name, starts in files:
            file = ROOT / name if name.startswith("tests/") else ROOT / "tests" / "planish" / name
            tests = re.findall(r"^def test_(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            for start in re.findall(r"\w+", starts):
                assert any(one.startswith(start) for one in tests), (name, start)
