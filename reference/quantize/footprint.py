"""The memory that a method needs for one block, beside the block and the samples' hidden states.

What counts are the arrays that grow with the model: Hessians, candidates of the block, gradients.
A block is one of float32 weights, N K numbers for each linear; the inputs of linears and what a
forward pass makes of them are counted for the tokens that a method runs at once.

N outputs, K inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planish.reference.files.load import Checkpoint
from planish.reference.model.shapes import block_shapes
from planish.reference.quantize.methods.gptq import STAGES, leader_of
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.schemes import block_schemes

Sizes = Mapping[str, tuple[int, int]]  # N, K of each linear of a block that has a scheme

FLOAT, DOUBLE = 4, 8  # bytes
TRAINED_TOKENS = 1024  # whose activations are in memory


def work_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """The most that a method of the recipe needs, over all blocks."""
    layers = range(checkpoint.config.num_layers)
    blocks = {tuple(sizes_of(checkpoint, recipe, layer).items()): layer for layer in layers}
    given = [(dict(sizes), method) for sizes in blocks for method in recipe.methods if sizes]
    found = [WORK[method](sizes, recipe) for sizes, method in given if method in WORK]
    return max(found, default=0)


def sizes_of(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> Sizes:
    """The linears that one block's methods round."""
    shapes, schemes = (
        block_shapes(checkpoint.config, layer),
        block_schemes(checkpoint, recipe, layer),
    )
    quantized = [part for part, scheme in schemes.items() if scheme is not None]
    return {part: (shapes[part][0][0], shapes[part][0][1]) for part in quantized}


def state_bytes(
    checkpoint: Checkpoint,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None,
    budget: int | None,
) -> int:
    """The samples' hidden states in memory: what a block reads and leaves, up to the budget.

    A sequential method has them in the quantized model, and in the float one if it reads all of
    these; GPTQ also has what attention leaves.
    """
    once = sum(map(len, samples or ())) * checkpoint.config.hidden_size * FLOAT
    both = recipe.sequential and recipe.follows_floats
    total = once * (2 + 2 * both + ("gptq" in recipe.methods))
    return total if budget is None else min(total, budget)


def block_bytes(sizes: Sizes) -> int:
    """A float block."""
    return FLOAT * sum(rows * cols for rows, cols in sizes.values())


def gptq_bytes(sizes: Sizes, recipe: Recipe) -> int:
    """The Hessians of a stage as they are summed up, the factor of one in float64, one weight.

    Three copies of each Hessian: what the runner returns, the sum, U. Five of the one that is
    inverted: H damped, its Cholesky factor, the inverse, and what they are made of.
    """
    inputs = {leader_of(part): cols for part, (_, cols) in sizes.items()}
    stages = STAGES if recipe.settings.true_sequential else (("q", "o", "up", "down"),)
    held = max(
        sum(cols * cols for part, cols in inputs.items() if part.split(".")[-1] in stage)
        for stage in stages
    )
    widest = max(inputs.values())
    weight = max(rows * cols for rows, cols in sizes.values())
    return 3 * FLOAT * held + 5 * DOUBLE * widest * widest + 4 * FLOAT * weight


def awq_bytes(sizes: Sizes, recipe: Recipe) -> int:  # noqa: ARG001  (as the others)
    """Six blocks (scaled, candidate and rounded, each in NumPy and in XLA); second moments."""
    widest = max(cols for _, cols in sizes.values())
    return 6 * block_bytes(sizes) + 3 * FLOAT * widest * widest


def training_bytes(sizes: Sizes, recipe: Recipe) -> int:  # noqa: ARG001
    """Six blocks (weights, values, gradient, parameters, a step's, the best); activations.

    A linear's input and output are counted four times: as they are, their gradients, and what the
    backward pass keeps and lays out anew.
    """
    wide = sum(rows + cols for rows, cols in sizes.values())
    return 6 * block_bytes(sizes) + 4 * FLOAT * TRAINED_TOKENS * wide


WORK: dict[str, Callable[[Sizes, Recipe], int]] = {
    "gptq": gptq_bytes,
    "awq": awq_bytes,
    "teq": training_bytes,
    "signround": training_bytes,
}
