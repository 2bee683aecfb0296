"""What a quantization says of each block as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One finished block.

    layer, blocks:  which one, of how many
    method:         the recipe's, such as awq+gptq
    before, after:  squared error of the block's outputs relative to what the float block adds to
                    its input (search.output_error), rounded to nearest and by the recipe; None
                    without a calibration, and `before` also if the recipe is plain rounding
    seconds:        how long it took
    resumed:        whether an earlier run had finished it
    """

    layer: int
    blocks: int
    method: str
    before: float | None = None
    after: float | None = None
    seconds: float = 0.0
    resumed: bool = False


Report = Callable[[BlockReport], None]


def no_report(report: BlockReport) -> None:
    """Say nothing."""
