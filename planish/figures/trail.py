"""The picture of an automatic search: size against loss, and what each linear costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.figures.drawing import BLUE, GREEN, GREY, RED, clean, open_canvas

SMALLEST = 1e-6  # on the logarithmic axes


def draw(values: Mapping[str, Any], path: Path) -> None:
    """Draw a report's values (compare/quality/trail.py) as SVG; ImportError without matplotlib."""
    figure = open_canvas(13, 5.2)
    draw_trials(figure.add_axes((0.06, 0.12, 0.42, 0.78)), values)
    draw_linears(figure.add_axes((0.56, 0.12, 0.42, 0.78)), values["linears"])
    figure.savefig(path, format="svg", bbox_inches="tight", pad_inches=0.15)


def draw_trials(axes: Any, values: Mapping[str, Any]) -> None:
    """Bits a weight against loss; mixtures in blue, the result ringed."""
    percent = 1 if values["metric"] == "kl" else 100
    for trial in values["trials"]:
        mixed = " wider" in trial["name"]
        place = trial["bits"], max(trial["loss"] * percent, SMALLEST)
        error = trial["error"] * percent
        colour = GREEN if trial["within"] else BLUE if mixed else RED
        axes.errorbar(*place, yerr=error, fmt="o", color=colour, markersize=5, linewidth=1)
        if not mixed:
            note = {"xytext": (6, 3), "textcoords": "offset points", "fontsize": 7}
            axes.annotate(trial["name"], place, color=GREY, **note)
    chosen = values["chosen"]
    ring = chosen["bits"], max(chosen["loss"] * percent, SMALLEST)
    axes.plot(*ring, "o", markersize=13, fillstyle="none", color=GREEN)
    if values["tolerance"] is not None:
        axes.axhline(values["tolerance"] * percent, color=GREY, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=6)
    axes.set_xlabel("bits a weight")
    unit = "nats per token" if percent == 1 else "%"
    axes.set_ylabel(f"{values['metric']} loss against float, {unit}")
    axes.set_title("every recipe that was tried; green is within the tolerance", fontsize=11)
    clean(axes)


def draw_linears(axes: Any, linears: Sequence[Mapping[str, Any]]) -> None:
    """What rounding each linear alone costs the loss: a point for each, by layer and kind."""
    parts = list(dict.fromkeys(one["part"] for one in linears))
    layers = 1 + max((one["layer"] for one in linears), default=0)
    table = np.full((len(parts), layers), np.nan)
    for one in linears:
        table[parts.index(one["part"]), one["layer"]] = np.log10(max(one["cost"], 1e-12))
    image = axes.imshow(table, aspect="auto", cmap="YlOrRd", interpolation="nearest")
    wide = [(one["layer"], parts.index(one["part"])) for one in linears if one["widened"]]
    if wide:
        axes.plot(*zip(*wide, strict=True), "s", markersize=4, color=BLUE)
    axes.set_yticks(range(len(parts)), parts)
    axes.set_xlabel("layer")
    axes.set_title("log10 of what rounding it alone costs, nats; blue: made wider", fontsize=11)
    axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
