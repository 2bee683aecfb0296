"""From a checkpoint to text: the steps, and the room of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planish.figures.drawing import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    draw_arrow,
    draw_box,
    open_diagram,
    save,
)

Step = tuple[str, str]  # a description, and the folder of its code

QUANTIZE: tuple[Step, ...] = (
    ("float checkpoint\nconfig, tensors,\none block at a time", "reference/files"),
    ("observe\nabsmax of each channel\non calibration text", "reference/quantize"),
    ("smooth\ns into norms\nand linears", "reference/quantize"),
    ("quantize\neach linear under\nits scheme", "reference/quantize"),
    ("quantized directory\ncodes, scales,\nconfig", "reference/files"),
)
RUN: tuple[Step, ...] = (
    ("text\n-> token ids", "reference/text"),
    ("engine maps\nthe directory", "fast/session"),
    ("prefill\n512 tokens at a time", "fast/model"),
    ("decode\none token at a time,\nKV cache", "fast/model"),
    ("sample\n-> streamed text", "reference/text"),
)
COLOURS = {"reference": AMBER, "fast": BLUE, "compare": GREEN}


def draw(path: Path) -> None:
    """Draw two rows, planish quantize and planish generate; compare checks the second."""
    figure, axes = open_diagram(13.2, 5.3)
    draw_row(axes, 4.15, "planish quantize", QUANTIZE)
    draw_row(axes, 2.15, "planish generate", RUN)
    axes.plot([11.85, 11.85, 4.2, 4.2], [3.38, 3.18, 3.18, 3.1], color=GREY, linewidth=1.4)
    draw_arrow(axes, (4.2, 3.14), (4.2, 2.78))
    words = "planish compare: the same tokens through reference/ and fast/, operation by operation,"
    words += " layer by layer, logit by logit"
    draw_box(axes, (6.8, 0.62, 11.7, 0.5), words, edge=GREEN, fill="#eef7ef", size=11)
    for index in (2, 3):
        draw_arrow(axes, (1.65 + 2.55 * index, 1.3), (1.65 + 2.55 * index, 0.93))
    save(figure, path)


def draw_row(axes: Any, y: float, title: str, steps: tuple[Step, ...]) -> None:
    """Draw boxes from left to right, with the folder below each."""
    axes.text(0.5, y + 0.83, title, fontsize=12.5, family="monospace", va="center")
    for index, (what, folder) in enumerate(steps):
        x, colour = 1.65 + 2.55 * index, COLOURS[folder.split("/")[0]]
        draw_box(axes, (x, y, 2.0, 1.05), what, edge=colour, fill="white", size=10.5)
        axes.text(x, y - 0.68, folder + "/", ha="center", fontsize=9.5, color=colour)
        if index:
            draw_arrow(axes, (x - 1.5, y), (x - 1.06, y))
