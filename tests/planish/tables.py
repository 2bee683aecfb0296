"""A printed row of `planish quality`, and whether a fresh one says the same."""

from __future__ import annotations

import re

import pytest

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def rows_in(text: str) -> dict[str, list[float]]:
    """Recipe -> the numbers of its row; raises where a row lacks one."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and " ± " in line]
    found = {}
    for line in lines:
        _, recipe, *cells, _ = (cell.strip() for cell in line.split("|"))
        found[recipe] = [float(number) for cell in cells for number in NUMBER.findall(cell)]
        assert len(found[recipe]) == 8, line
    return found


def assert_same_row(recipe: str, shown: list[float], fresh: list[float]) -> None:
    """Sizes exactly. What float32 sums decide within what another processor or jaxlib changes in
    them: a code at a tie goes the other way, which is less than the standard error of a row's
    difference from float. Speed not at all."""
    perplexity, error, delta, delta_error, kl, top1, size, speed = fresh
    noise = max(0.003, delta_error)
    assert shown[0] == pytest.approx(perplexity, abs=noise), recipe
    assert shown[1] == pytest.approx(error, abs=0.002 + 0.01 * error), recipe
    assert shown[2] == pytest.approx(delta, abs=noise), recipe
    assert shown[3] == pytest.approx(delta_error, abs=0.001 + 0.05 * delta_error), recipe
    assert shown[4] == pytest.approx(kl, abs=0.0002 + 0.02 * kl), recipe
    assert shown[5] == pytest.approx(top1, abs=0.4), recipe
    assert shown[6] == size and speed > 0, recipe
