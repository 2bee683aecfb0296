"""The progress of blocks: the time left, in words and in JSON."""

from __future__ import annotations

import json

import pytest

from planish.reference.errors import PlanishError
from planish.reference.quantize.report import BlockReport
from planish.terminal import blocks
from planish.terminal.blocks import BlockProgress, describe_block
from planish.terminal.sizes import parse_bytes


def report(layer: int, seconds: float, **facts: object) -> BlockReport:
    return BlockReport(layer=layer, blocks=4, method="gptq", seconds=seconds, **facts)  # type: ignore[arg-type]


def test_the_time_left_is_that_of_the_computed_blocks(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(blocks, "notice", said.append)
    shown = BlockProgress()
    shown.report(report(0, 0.1, resumed=True))
    assert shown.seconds_left() is None and said == []
    shown.report(report(1, 10.0, before=0.02, after=0.01))
    assert said == ["block 2 of 4 (gptq) took 10 s: about 20 s left"]
    shown.report(report(2, 20.0))
    assert shown.seconds_left() == 15.0 and len(said) == 1
    assert shown.describe_last() == ", gptq, 15 s left"


def test_errors_are_shown_before_and_after():
    assert (
        describe_block(report(0, 1, before=0.0213, after=0.00421))
        == "gptq, error 0.0213 -> 0.00421"
    )
    assert describe_block(report(0, 1, after=0.5)) == "gptq, error 0.5"


def test_json_has_no_infinity(capsys):
    shown = BlockProgress("json")
    shown.report(report(0, 1.0, before=float("inf"), after=float("nan")))
    said = json.loads(capsys.readouterr().err, parse_constant=pytest.fail)
    assert said["before"] is None and said["after"] is None and said["seconds_left"] == 3.0


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("2K", 2048), ("1.5G", 3 * 2**29), ("3 MiB", 3 * 2**20), ("2g", 2**31)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text, "memory_budget") == size


@pytest.mark.parametrize("text", ["", "G", "-1", "2 apples", "1e3", "nan"])
def test_other_sizes_are_refused(text):
    with pytest.raises(
        PlanishError, match="memory_budget: bad value; expected bytes, as 500M or 2G"
    ):
        parse_bytes(text, "memory_budget")
