"""Every checkpoint that another program wrote agrees on all levels, in XLA's form and natively."""

from __future__ import annotations

import pytest

from planish.compare.conformance import report
from planish.reference.files.load import open_checkpoint
from tests.golden.foreign import TARGET

SAMPLES = sorted(path.name for path in TARGET.iterdir())
TOKENS = [1, 5, 9, 20, 7, 31, 3]


@pytest.mark.whole(15)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
@pytest.mark.parametrize("name", SAMPLES)
def test_what_others_wrote_agrees(name, native, request, monkeypatch):
    """Without the cases that need no model, which test_kernels.py runs once."""
    monkeypatch.setattr(report.Walk, "check_without_model", lambda walk: [])
    if native:
        request.getfixturevalue("kernels")
    found = report.run(open_checkpoint(TARGET / name), TOKENS, native=native)
    assert found.agree, found.first_mismatch
