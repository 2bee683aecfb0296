"""The error by alpha: too little migration and the activations suffer, too much and the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from planish.figures.drawing import AMBER, BLUE, GREEN, clean, open_canvas, save

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RECIPES = {"O2": BLUE, "W8A8": GREEN, "W4A8-g32": AMBER}


def draw(errors: Mapping[str, Sequence[float]], path: Path) -> None:
    """KL from the float model at each of ALPHAS, one line a recipe."""
    figure = open_canvas(8.5, 4.8)
    axes = figure.add_axes((0.1, 0.12, 0.87, 0.78))
    for recipe, kl in errors.items():
        axes.plot(ALPHAS, kl, "o-", color=RECIPES[recipe], label=recipe, markersize=5)
    axes.set_yscale("log")
    axes.set_xlabel("alpha   (0: all of s from the weights, 1: all of it from the activations)")
    axes.set_ylabel("KL from the float model, nats per token")
    axes.set_title("the embedded model with outlier channels", fontsize=12)
    axes.legend(frameon=False)
    clean(axes)
    save(figure, path)
