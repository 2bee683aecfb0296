"""SmoothQuant on one linear, by hand: python examples/smooth_a_linear.py

Equation 4 of arXiv 2211.10438 on random numbers of which eight channels are outliers.
"""

import numpy as np

from planish.reference.grids import quantize_int8
from planish.reference.quantize.smooth import smoothing_scale

T, K, N = 64, 256, 128  # tokens, inputs, outputs
rng = np.random.default_rng(0)
X = rng.standard_normal((T, K)).astype(np.float32)
X[:, rng.choice(K, 8, replace=False)] *= 80  # outlier channels
W = (0.05 * rng.standard_normal((N, K))).astype(np.float32)


def w8a8(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x wᵀ by INT8 codes: one scale for each token of x [T, K] and each output of w [N, K]."""
    xq, a_scale = quantize_int8(x, "per_row", "x")  # int8 [T, K], float32 [T, 1]
    wq, w_scale = quantize_int8(w, "per_row", "w")  # int8 [N, K], float32 [N, 1]
    total = xq.astype(np.int32) @ wq.T.astype(np.int32)  # exact
    return (total * a_scale * w_scale.T).astype(np.float32)


def relative_error(y: np.ndarray) -> float:
    """Root mean square of the error, relative to that of the exact product."""
    exact = X @ W.T
    return float(np.sqrt(np.square(y - exact).mean() / np.square(exact).mean()))


print(f"without smoothing   {relative_error(w8a8(X, W)):.4f}")
for alpha in (0.25, 0.5, 0.75, 1.0):
    s = smoothing_scale(np.abs(X).max(axis=0), [W], alpha)  # [K]
    print(f"alpha = {alpha:.2f}        {relative_error(w8a8(X / s, W * s)):.4f}")
