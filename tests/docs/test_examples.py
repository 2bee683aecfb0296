"""The examples run as they are, and their results are what they are there to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def run(example: Path, directory: Path) -> str:
    command = [sys.executable, str(example)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.optimized
@pytest.mark.whole
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_outside_the_repository(example, tmp_path):
    assert len(run(example, tmp_path)) > 20


def test_smoothing_by_hand_lowers_the_error(tmp_path):
    (example,) = (path for path in EXAMPLES if path.stem == "smooth_a_linear")
    errors = [float(line.split()[-1]) for line in run(example, tmp_path).splitlines()]
    assert errors[2] < 0.5 * errors[0] and errors[2] < errors[4]  # alpha 0.5; alpha 1
