"""The picture of SmoothQuant: a layer's activations and weights, before and after smoothing.

As in the paper's figures 1 and 4: channels to the right, tokens (or rows of the weight) into the
depth, magnitude upward. A few tall walls become a low plain; the weights rise a little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model.weights import Block, block_linears
from planish.reference.quantize.observe import embed_samples, observe_block, run_block
from planish.reference.quantize.smooth import smooth_block


def collect(
    checkpoint: Checkpoint, sample: np.ndarray, layer: int, linear: str, alpha: float
) -> dict[str, np.ndarray]:
    """|X| [T, K] and |W| [N, K] of one linear, before and after smoothing."""
    weights = load_weights(checkpoint)
    hidden = embed_samples(checkpoint.config, weights, [sample])
    for index in range(layer):
        block = weights.blocks[index]
        hidden = [run_block(checkpoint.config, block, x) for x in hidden]
    before = weights.blocks[layer]
    absmax, _ = observe_block(checkpoint.config, before, hidden)
    after = smooth_block(checkpoint.config, before, absmax, alpha)
    panels = {}
    for title, block in (("before", before), ("after", after)):
        panels[f"activations {title}"] = np.abs(input_of(checkpoint, block, hidden[0], linear))
        panels[f"weights {title}"] = np.abs(np.asarray(block_linears(block)[linear].weight))
    return panels


def input_of(checkpoint: Checkpoint, block: Block, x: np.ndarray, linear: str) -> np.ndarray:
    """What one linear of a block reads."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, value: np.ndarray) -> None:
        seen.setdefault(name, value)

    run_block(checkpoint.config, block, x, keep)
    return seen[linear]


def draw(panels: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Four surfaces into a PNG. Raises ImportError where matplotlib is absent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for index, name in enumerate(
        ("activations before", "activations after", "weights before", "weights after"), 1
    ):
        axes: Any = figure.add_subplot(1, 4, index, projection="3d")
        depth = "token" if name.startswith("activations") else "output"
        surface(axes, panels[name], depth)
        axes.set_title(f"{name} smoothing\nlargest {panels[name].max():.3g}", fontsize=11)
    figure.suptitle(title, fontsize=13)
    figure.savefig(path, dpi=110)


def surface(axes: Any, values: np.ndarray, depth: str) -> None:
    """One panel: at most 48 rows, every channel."""
    rows = values[: 48 * max(1, len(values) // 48) : max(1, len(values) // 48)]
    channels, tokens = np.meshgrid(np.arange(rows.shape[1]), np.arange(len(rows)))
    axes.plot_surface(
        channels,
        tokens,
        rows,
        cmap="coolwarm",
        rstride=1,
        cstride=1,
        linewidth=0,
        antialiased=False,
    )
    axes.set_xlabel("channel")
    axes.set_ylabel(depth)
    axes.set_zlabel("magnitude")
    axes.view_init(elev=24, azim=-62)
