"""Quality against size: every recipe of the demo, on the model with outlier channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planish.compare.quality.measure import Quality
from planish.figures.drawing import BLUE, RED, clean, open_canvas, save

LEFT = ("W4A16-g128", "W4A8-g128", "W4A16-g128-alpha0.5", "O1", "O2")  # labels on the left
SHIFTED = {"W4A8-g32-alpha0.5": 7, "W4A16-g32-alpha0.5": -7}  # by points, as they overlap


def draw(rows: Sequence[Quality], path: Path) -> None:
    """Plot KL from the float model, on a logarithmic scale, against size."""
    figure = open_canvas(9.5, 5.6)
    axes = figure.add_axes((0.09, 0.1, 0.88, 0.82))
    for row in rows:
        if row.recipe != "float":
            place, left = (row.size / 1e6, row.mean_kl), row.recipe in LEFT
            axes.plot(*place, "o", markersize=7, color=colour_of(row.recipe))
            note = {"xytext": (-9 if left else 9, -4 + SHIFTED.get(row.recipe, 0)), "fontsize": 10}
            note |= {"textcoords": "offset points", "ha": "right" if left else "left"}
            axes.annotate(row.recipe, place, color=colour_of(row.recipe), **note)
    axes.set_yscale("log")
    axes.margins(x=0.4)
    axes.set_xlabel("size of the weights' files, MB (float: 11.5; the embedding stays in float)")
    axes.set_ylabel("KL from the float model, nats per token (lower is better)")
    title = "the embedded model with outlier channels: red not smoothed, blue smoothed"
    axes.set_title(title, fontsize=12)
    clean(axes)
    save(figure, path)


def colour_of(recipe: str) -> str:
    """Blue for a smoothed recipe, red for others."""
    smoothed = "alpha" in recipe or recipe in ("O1", "O2", "O3", "W8A8")
    return BLUE if smoothed else RED
