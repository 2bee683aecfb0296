"""Shared by the pictures: a canvas that needs no window, colours, boxes and arrows.

matplotlib is imported when a picture is drawn, because the demo also runs without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

INK, GREY, PALE = "#222222", "#8a8a8a", "#eef1f5"
BLUE, RED, GREEN, AMBER = "#2f6db3", "#c8452f", "#3a8a4d", "#b98200"


def open_canvas(width: float, height: float) -> Any:
    """An empty figure, its size in inches. Raises ImportError if matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def open_diagram(width: float, height: float) -> tuple[Any, Any]:
    """A figure, and axes without a frame in which one unit is one inch."""
    figure = open_canvas(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def save(figure: Any, path: Path, dpi: int = 100) -> None:
    """Save a PNG, cropped to its content, so that no label is cut off."""
    figure.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.15)


def clean(axes: Any) -> None:
    """Remove the frame above and to the right; add a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_box(axes: Any, place: tuple[float, float, float, float], text: str, **style: Any) -> None:
    """Draw a rounded box; place: x and y of its centre, width, height."""
    from matplotlib.patches import FancyBboxPatch

    x, y, width, height = place
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=style.get("fill", PALE),
            edgecolor=style.get("edge", GREY),
            linewidth=1.2,
        )
    )
    size, colour = style.get("size", 10), style.get("ink", INK)
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.35)


def draw_arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2}
    )
