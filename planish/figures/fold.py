"""Where s goes: the norm's output is divided by it, the linears that read it are multiplied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planish.figures.drawing import (
    AMBER,
    BLUE,
    GREEN,
    RED,
    draw_arrow,
    draw_box,
    open_diagram,
    save,
)

READERS = ("q", "k", "v")


def draw(path: Path) -> None:
    """Draw the same function twice: before, and with s folded in."""
    figure, axes = open_diagram(12, 5.4)
    draw_half(axes, 0.0, folded=False)
    draw_half(axes, 6.1, folded=True)
    axes.plot([6.05, 6.05], [0.95, 5.2], color="#cccccc", linewidth=1)
    words = (
        "s[j] = max(1e-5, xmax[j]^alpha / wmax[j]^(1 - alpha))",
        (
            "xmax[j]: largest |x| of channel j on the calibration text    "
            "wmax[j]: largest |W[:, j]| over all the readers"
        ),
        (
            "(x / s) (W * s)ᵀ = x Wᵀ: every output stays what it was; "
            "only what is quantized is smoother"
        ),
    )
    for index, line in enumerate(words):
        axes.text(6.05, 0.72 - 0.27 * index, line, ha="center", va="center", fontsize=10.5)
    save(figure, path)


def draw_half(axes: Any, left: float, folded: bool) -> None:
    """Draw a norm, its output and its readers, from top to bottom."""
    title = (
        "after: s is part of the stored weights" if folded else "before: channel j is an outlier"
    )
    axes.text(left + 2.95, 5.2, title, ha="center", va="center", fontsize=12.5)
    norm = "norm\nweight / s,  bias / s" if folded else "norm\nweight,  bias"
    edge = GREEN if folded else RED
    draw_box(axes, (left + 2.95, 4.45, 2.6, 0.72), norm, edge=AMBER, fill="#fdf6e3", size=11)
    flow = (
        "x / s  [T, K]\nno channel stands out"
        if folded
        else "x  [T, K]\nx[:, j] is 100 times the rest"
    )
    draw_box(axes, (left + 2.95, 3.2, 2.7, 0.78), flow, edge=edge, fill="white", size=11)
    draw_arrow(axes, (left + 2.95, 4.06), (left + 2.95, 3.63))
    for index, name in enumerate(READERS):
        x = left + 1.1 + 1.85 * index
        weight = f"{name}\nW[:, j] * s[j]" if folded else f"{name}\nW  [N, K]"
        draw_arrow(axes, (left + 2.95, 2.78), (x, 2.2))
        draw_box(axes, (x, 1.78, 1.6, 0.76), weight, edge=BLUE, size=11)
