"""The embedded model, whose 768 inputs of `down` are more than those of any golden."""

from __future__ import annotations

import pytest

from planish import pocket
from planish.compare.conformance import report
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe


@pytest.mark.whole
@pytest.mark.parametrize("name", ["W8A16", "W4A16"])
def test_long_float_sums_agree(name, kernels, tmp_path, monkeypatch):
    """A row of equal activations, whose rounding errors add up instead of cancelling.

    Without the cases that need no model, which test_kernels.py runs once.
    """
    monkeypatch.setattr(report.Walk, "check_without_model", lambda walk: [])
    source = open_checkpoint(pocket.MODEL)
    with CheckpointWriter(tmp_path / "out", pocket.MODEL) as writer:
        quantize_checkpoint(source, writer, recipe(name))
    found = report.run(open_checkpoint(tmp_path / "out"), levels=(1,), native=True)
    assert found.agree, found.first_mismatch
