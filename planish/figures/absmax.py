"""The largest value of each channel, in the activations and in the weights, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from planish.figures.drawing import BLUE, RED, clean, open_canvas, save


def draw(panels: dict[str, np.ndarray], path: Path) -> None:
    """Two plots from |X| [T, K] and |W| [N, K]: per channel j, max |X[:, j]| and max |W[:, j]|."""
    figure = open_canvas(11, 4.2)
    for index, kind in enumerate(("activations", "weights")):
        axes = figure.add_axes((0.07 + 0.5 * index, 0.14, 0.41, 0.74))
        for when, colour in (("before", RED), ("after", BLUE)):
            draw_channels(axes, panels[f"{kind} {when}"], when, colour)
        axes.set_yscale("log")
        axes.set_title(f"{kind}: largest magnitude of each channel", fontsize=12)
        axes.set_xlabel("channel j")
        axes.set_ylabel({"activations": "max |X[:, j]|", "weights": "max |W[:, j]|"}[kind])
        axes.legend(frameon=False, loc="best")
    save(figure, path)


def draw_channels(axes: Any, values: np.ndarray, when: str, colour: str) -> None:
    """Plot one point for each channel; the label says how far the largest is above the median."""
    peaks = values.max(axis=0)  # [K]
    spread = peaks.max() / np.median(peaks)
    label = f"{when} smoothing: largest / median = {spread:.1f}"
    axes.plot(np.arange(len(peaks)), peaks, "o", markersize=3, color=colour, label=label)
    clean(axes)
