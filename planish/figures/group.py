"""One W4A8 group, worked through: eight numbers, from floats to their integer sum (SPEC 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from planish.figures.drawing import BLUE, GREEN, PALE, RED, open_diagram, save
from planish.reference.grids import int4_codes, int4_parameters, int8_codes, int8_scale

WEIGHTS = np.array([[0.11, -0.42, 0.30, 0.05, -0.80, 0.26, 0.64, -0.17]], np.float32)
INPUTS = np.array([[1.5, -0.2, 0.7, 2.54, 0.1, -1.2, 0.4, 0.9]], np.float32)
LEFT, STEP = 4.7, 1.02


def work_through(w: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every number of one group: w [1, g] and x [1, g] -> scales, codes, products, the sum."""
    scale, zero = int4_parameters(w, -1, "signed")
    codes = int4_codes(w, scale, zero, -1)
    a_scale = int8_scale(np.abs(x).max(axis=1, keepdims=True))
    x_codes = int8_codes(x, a_scale)
    centred = codes.astype(np.int32) - int(zero[0, 0])
    products = x_codes.astype(np.int32) * centred
    total = products.sum(axis=1).astype(np.float32)
    y = (total * scale[:, 0].astype(np.float32)) * a_scale[:, 0]
    found = {"scale": scale, "codes": codes, "centred": centred, "a_scale": a_scale}
    return found | {"x_codes": x_codes, "products": products, "total": total, "y": y}


def draw(path: Path) -> None:
    """Seven rows of eight numbers, and the sum."""
    found = work_through(WEIGHTS, INPUTS)
    figure, axes = open_diagram(13.2, 5.9)
    scale, a_scale = float(found["scale"][0, 0]), float(found["a_scale"][0, 0])
    largest = WEIGHTS[0, np.abs(WEIGHTS[0]).argmax()]
    rows: tuple[tuple[str, np.ndarray, str, str], ...] = (
        ("weights w", WEIGHTS[0], "{:.2f}", BLUE),
        ("codes q = clip(rint(w / scale) + 8, 0, 15)", found["codes"][0], "{}", BLUE),
        ("q - 8, as it is multiplied", found["centred"][0], "{}", BLUE),
        ("activations x", INPUTS[0], "{:.2f}", RED),
        ("codes xq = rint(x / a_scale)", found["x_codes"][0], "{}", RED),
        ("products xq * (q - 8)", found["products"][0], "{}", GREEN),
    )
    for index, row in enumerate(rows):
        draw_numbers(axes, 5.15 - 0.62 * index - 0.25 * (index > 2) - 0.25 * (index > 4), row)
    exact = float((WEIGHTS * INPUTS).sum())
    words = (
        (
            f"scale = m / -8 = {largest:.2f} / -8 = {scale:.4g}, m the entry of largest magnitude,"
            f" stored as float16        a_scale = max |x| / 127 = {a_scale:.4g}"
        ),
        (
            f"integer sum = {int(found['total'][0])}        y = (sum * scale) * a_scale ="
            f" {float(found['y'][0]):.4f}        in float: {exact:.4f}"
        ),
    )
    for index, line in enumerate(words):
        axes.text(6.6, 0.82 - 0.4 * index, line, ha="center", va="center", fontsize=11.5)
    save(figure, path)


def draw_numbers(axes: Any, y: float, row: tuple[str, np.ndarray, str, str]) -> None:
    """A label and one box for each number."""
    from matplotlib.patches import Rectangle

    label, values, form, colour = row
    axes.text(LEFT - 0.25, y, label, ha="right", va="center", fontsize=11.5, color=colour)
    for index, value in enumerate(values):
        x = LEFT + STEP * index
        box = Rectangle((x, y - 0.24), STEP * 0.92, 0.48, facecolor=PALE, edgecolor=colour)
        axes.add_patch(box)
        text = form.format(value)
        axes.text(x + STEP * 0.46, y, text, ha="center", va="center", fontsize=12)
