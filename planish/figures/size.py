"""Quality against size: every recipe of the demo, on the model with outlier channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planish.compare.quality.measure import Quality
from planish.figures.drawing import BLUE, GREEN, GREY, RED, clean, open_canvas, save


def draw(rows: Sequence[Quality], path: Path) -> None:
    """Size to the right, KL from the float model upward, on a logarithmic scale."""
    figure = open_canvas(9.5, 5.6)
    axes = figure.add_axes((0.09, 0.1, 0.88, 0.82))
    seen: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: -row.mean_kl):
        if row.recipe != "float":
            size = row.size / 1e6
            axes.plot(size, row.mean_kl, "o", markersize=7, color=colour_of(row.recipe))
            near = sum(abs(size - x) < 0.5 and abs(row.mean_kl / y - 1) < 0.15 for x, y in seen)
            note = {"xytext": (8, -4 - 12 * near), "textcoords": "offset points", "fontsize": 10}
            axes.annotate(row.recipe, (size, row.mean_kl), color=colour_of(row.recipe), **note)
            seen.append((size, row.mean_kl))
    axes.set_yscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("size of the weights' files, MB (float: 11.5; the embedding stays in float)")
    axes.set_ylabel("KL from the float model, nats per token (lower is better)")
    title = "the embedded model with outlier channels: red not smoothed, blue smoothed"
    axes.set_title(title, fontsize=12)
    clean(axes)
    save(figure, path)


def colour_of(recipe: str) -> str:
    """Red for 8-bit activations that are not smoothed, blue for what is, green for weight-only."""
    if "alpha" in recipe or recipe in ("O1", "O2", "O3", "W8A8"):
        return BLUE
    return {"W8A16": GREEN, "float": GREY}.get(recipe, RED)
