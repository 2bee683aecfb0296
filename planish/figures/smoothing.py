"""SmoothQuant in one picture: the outliers of the activations vanish, and the weights hardly grow.

As figure 4 of arXiv 2211.10438: channels to the right, tokens (or outputs) into the depth,
magnitude upward. Before and after share one scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from planish.figures.drawing import open_canvas, save

ROWS = 48  # tokens or outputs that are drawn
PANELS = ("activations before", "activations after", "weights before", "weights after")
DEPTHS = {"activations": "token", "weights": "output"}


def draw(panels: dict[str, np.ndarray], path: Path) -> None:
    """Draw four surfaces from |X| [T, K] and |W| [N, K]; raises ImportError without matplotlib."""
    figure = open_canvas(16, 4.8)
    for index, name in enumerate(PANELS):
        kind = name.split()[0]
        axes = figure.add_axes((0.25 * index, 0.02, 0.215, 0.84), projection="3d")
        top = max(panels[f"{kind} {when}"].max() for when in ("before", "after"))
        draw_surface(axes, panels[name], float(top), DEPTHS[kind])
        axes.set_title(f"{name} smoothing\nlargest: {panels[name].max():.3g}", fontsize=13)
    save(figure, path, dpi=80)


def draw_surface(axes: Any, values: np.ndarray, top: float, depth: str) -> None:
    """Draw one panel: at most ROWS rows, every channel, the vertical axis up to `top`."""
    step = max(1, len(values) // ROWS)
    rows = values[: ROWS * step : step]
    channels, places = np.meshgrid(np.arange(rows.shape[1]), np.arange(len(rows)) * step)
    axes.plot_surface(
        channels,
        places,
        rows,
        cmap="coolwarm",
        vmin=0,
        vmax=top * 0.6,
        rstride=1,
        cstride=1,
        linewidth=0,
        antialiased=False,
    )
    axes.set_zlim(0, top)
    axes.set_xlabel("channel", fontsize=11)
    axes.set_ylabel(depth, fontsize=11)
    axes.set_zlabel("magnitude", fontsize=11, rotation=90)
    axes.view_init(elev=22, azim=-62)
