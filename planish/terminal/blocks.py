"""The progress of a quantization: block i of n, its error, and the time left.

Text: a bar on a terminal, a line now and then in a log. JSON: an object on a line of stderr for
each finished block.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from planish.reference.errors import notice
from planish.reference.quantize.report import BlockReport
from planish.terminal.progress import duration, log_progress, open_bar

FORMS = ("text", "json")
LONG = 15  # seconds from which an estimate is announced


class BlockProgress:
    """Shows and collects the reports of a quantization's blocks."""

    def __init__(self, form: str = "text"):
        self.form = form
        self.reports: list[BlockReport] = []
        self.bar: tqdm[Any] | None = None

    def progress(self, items: Iterable[Any], description: str = "") -> Iterable[Any]:
        """Iterate, and show how far it is (reference/progress.py)."""
        if self.form == "json":
            return items
        if not sys.stderr.isatty():
            return log_progress(items, description, detail=self.describe_last)
        bar = self.bar = open_bar(items, description)
        shown: Iterable[Any] = bar
        return shown

    def report(self, report: BlockReport) -> None:
        """Take the report of a finished block."""
        self.reports.append(report)
        if self.form == "json":
            print(json.dumps(self.event(report)), file=sys.stderr, flush=True)
        elif self.bar is not None:
            self.bar.set_postfix_str(describe_block(report))
        if self.form == "text" and report is self.first_computed():
            self.announce(report)

    def announce(self, report: BlockReport) -> None:
        """After the first block say how long the others will take, if that is long."""
        left = self.seconds_left()
        if left is not None and left >= LONG:
            block = f"block {report.layer + 1} of {report.blocks}"
            took = duration(report.seconds)
            notice(f"{block} ({report.method}) took {took}: about {duration(left)} left")

    def first_computed(self) -> BlockReport | None:
        """The first block that no earlier run had finished."""
        return next((report for report in self.reports if not report.resumed), None)

    def event(self, report: BlockReport) -> dict[str, Any]:
        """A report as a program reads it."""
        return {"event": "block", **describe_fields(report), "seconds_left": self.seconds_left()}

    def seconds_left(self) -> float | None:
        """What the other blocks will take, as long as those of this run; None before the first."""
        computed = [report.seconds for report in self.reports if not report.resumed]
        if not computed:
            return None
        rest = self.reports[-1].blocks - len(self.reports)
        return round(sum(computed) / len(computed) * rest, 1)

    def describe_last(self) -> str:
        """The last block in words, for a line of a log; empty before the first."""
        if not self.reports:
            return ""
        left = self.seconds_left()
        time = "" if left is None else f", {duration(left)} left"
        return f", {describe_block(self.reports[-1])}{time}"


def describe_fields(report: BlockReport) -> dict[str, Any]:
    """A block for JSON: counted from 1, errors and seconds rounded."""
    rounded = {key: _round(getattr(report, key)) for key in ("before", "after")}
    fields = asdict(report) | rounded | {"seconds": round(report.seconds, 3)}
    fields["block"] = fields.pop("layer") + 1
    return {"block": fields["block"], **fields}


def _round(error: float | None) -> float | None:
    """Six digits; None for an error that is not finite, which JSON does not have."""
    return float(f"{error:.6g}") if error is not None and abs(error) < float("inf") else None


def describe_block(report: BlockReport) -> str:
    """gptq, error 0.0213 -> 0.0042"""
    errors = [f"{error:.3g}" for error in (report.before, report.after) if error is not None]
    return f"{report.method}, error {' -> '.join(errors)}" if errors else report.method
