"""The error against alpha: too little migration hurts the activations, too much the weights.

One random linear, as in examples/smooth_a_linear.py: eight of 256 input channels are larger than
the others, and the weights do not compensate. On the embedded model every alpha is equally good,
because its weights compensate for its outliers exactly (pocket/outliers.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planish.figures.drawing import AMBER, BLUE, RED, clean, open_canvas, save
from planish.reference.grids import quantize_int8
from planish.reference.quantize.smooth import smoothing_scale

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))
SIZES = {10: BLUE, 30: AMBER, 100: RED}  # outlier channels are this many times the others
TOKENS, INPUTS, OUTPUTS, OUTLIERS = 64, 256, 128, 8


def draw(path: Path) -> None:
    """One curve for each size of the outliers, with a dot at its minimum."""
    figure = open_canvas(8.5, 4.8)
    axes = figure.add_axes((0.1, 0.12, 0.87, 0.78))
    for size, colour in SIZES.items():
        errors = errors_by_alpha(size)
        axes.plot(ALPHAS, errors, color=colour, label=f"outliers {size} times the rest")
        best = int(np.argmin(errors))
        axes.plot(ALPHAS[best], errors[best], "o", color=colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("alpha   (0: the weights become flat, 1: the activations do)")
    axes.set_ylabel("error of a W8A8 linear, relative RMS")
    axes.set_title("one linear, 8 of 256 channels are outliers", fontsize=12)
    axes.legend(frameon=False)
    clean(axes)
    save(figure, path)


def errors_by_alpha(size: float) -> list[float]:
    """The relative RMS error of y at each of ALPHAS, for outliers of one size."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, INPUTS)).astype(np.float32)
    x[:, rng.choice(INPUTS, OUTLIERS, replace=False)] *= size
    w = (0.05 * rng.standard_normal((OUTPUTS, INPUTS))).astype(np.float32)
    exact, found = x @ w.T, []
    for alpha in ALPHAS:
        s = smoothing_scale(np.abs(x).max(axis=0), [w], alpha)  # [K]
        wrong = int8_product(x / s, w * s) - exact
        found.append(float(np.sqrt(np.square(wrong).mean() / np.square(exact).mean())))
    return found


def int8_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x wᵀ in INT8, one scale for each token of x [T, K] and each output of w [N, K]."""
    (xq, a_scale), (wq, w_scale) = quantize_int8(x, "per_row"), quantize_int8(w, "per_row")
    sums: np.ndarray = xq.astype(np.int32) @ wq.T.astype(np.int32)  # [T, N]
    y: np.ndarray = sums * a_scale * w_scale.T
    return y
