"""Routers near a tie: more than one choice of experts is right.

Router logits are floats. If those of the last chosen and the first rejected expert differ by less
than rounding error, either choice is right, and the outputs differ. For such a row the reference is
computed with each legal choice, and the found output is compared with the nearest one. No output of
another expert is near any of them.

The rounding error of a router logit depends on what comes before the router. Where both sides read
the same rows it is at most 1e-5. Inside a block it is taken as three times the movement of the
reference's router logits when the block's input is perturbed by 2e-6 (perturbation.py), because a
code that flips in attention moves them more. Mixtures of experts: arXiv 1701.06538.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from planish.compare.conformance.trace import Seen
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear, float_weight
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig, Moe
from planish.reference.model.layers import softmax
from planish.reference.model.weights import Block, Experts, Mlp

LOGIT_MARGIN = 1e-5  # absolute, or relative to a router logit greater than 1
PERTURBATION = np.float32(2e-6)
FACTOR = 3.0
MOST_CHOICES = 8  # for one row

Choices = dict[int, list[np.ndarray]]  # by row: expert ids [top_k] of each, the reference's first


def require_moe(config: ModelConfig) -> Moe:
    """The mixture's configuration; raises ValueError for a model without experts."""
    if config.moe is None:
        raise ValueError("the model has no experts")
    return config.moe


def require_experts(block: Block) -> Experts:
    """The block's experts; raises TypeError where it has an MLP."""
    if not isinstance(block.mlp, Experts):
        raise TypeError("this block has no experts")
    return block.mlp


def find_legal_choices(config: ModelConfig, logits: np.ndarray, margin: float) -> Choices:
    """The legal choices of experts, for those rows of router logits [T, E] that have several."""
    top_k, found = require_moe(config).top_k, Choices()
    if top_k == logits.shape[1]:
        return found
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=1)
    allowed = margin * np.maximum(1, np.abs(ranked[:, top_k]))
    for row in np.flatnonzero(ranked[:, top_k - 1] - ranked[:, top_k] <= allowed):
        kept = order[row][ranked[row] > ranked[row, top_k] + allowed[row]]
        near = order[row][len(kept) :]
        near = near[logits[row, near] >= ranked[row, top_k - 1] - allowed[row]]
        others = itertools.combinations(near, top_k - len(kept))
        some = itertools.islice(others, MOST_CHOICES)
        found[int(row)] = [np.array([*kept, *other], np.int64) for other in some]
    return found


def routing_weights(config: ModelConfig, logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Routing weights [top_k] of chosen experts, from router logits [E], as in the reference."""
    weights: np.ndarray = softmax(logits)[chosen]
    return weights / np.sum(weights) if require_moe(config).normalized else weights


def measure_margin(config: ModelConfig, block: Block, seen: Seen) -> float:
    """How much rounding before the router may move a block's router logits."""
    experts = block.mlp
    if not isinstance(experts, Experts):
        return 0.0
    hidden = len(float_weight(experts.router))
    width = seen["n"].shape[1]
    zero = Linear(np.zeros((width, hidden), np.float32))
    short = replace(block, mlp=Mlp(None, experts.router, zero))  # nothing after the router
    noise = np.random.default_rng(0).standard_normal(seen["x"].shape, np.float32)
    moved: Seen = {}
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)
    given = seen["x"] * (1 + PERTURBATION * noise), np.arange(len(noise)), (nothing, nothing)
    reference_transformer.block_forward(config, short, *given, moved.__setitem__)
    logits, others = (reference_linear.linear(n, experts.router) for n in (seen["n"], moved["up"]))
    change = np.abs(others - logits) / np.maximum(1, np.abs(logits))
    return max(LOGIT_MARGIN, FACTOR * float(change.max()))


def mix_choices(
    config: ModelConfig, experts: Experts, n: np.ndarray, choices: Choices
) -> dict[int, np.ndarray]:
    """The mixture's output [choices, D] for each choice, by row of n [T, D].

    Every expert is computed once, for all rows that need it.
    """
    logits = reference_linear.linear(n, experts.router)
    outputs: dict[tuple[int, int], np.ndarray] = {}
    wanted = {(int(e), row) for row, each in choices.items() for c in each for e in c}
    for expert, pairs in itertools.groupby(sorted(wanted), key=lambda pair: pair[0]):
        rows = [row for _, row in pairs]
        mixed = reference_transformer.mlp(config, experts.experts[expert], n[rows])
        outputs |= {(expert, row): y for row, y in zip(rows, mixed, strict=True)}

    def output(row: int, chosen: np.ndarray) -> np.ndarray:
        weights = dict(zip(chosen, routing_weights(config, logits[row], chosen), strict=True))
        terms = [weights[e] * outputs[int(e), row] for e in sorted(weights)]
        y: np.ndarray = np.sum(terms, axis=0)
        return y

    return {row: np.stack([output(row, c) for c in each]) for row, each in choices.items()}


def take_nearest(
    expected: np.ndarray, found: np.ndarray, options: dict[int, np.ndarray]
) -> np.ndarray:
    """Expected [T, D], each row with options [choices, D] replaced by the nearest to found."""
    if expected.shape != found.shape or not options:
        return expected
    settled = expected.copy()
    for row, each in options.items():
        errors = np.abs(each - found[row]).max(axis=1)
        settled[row] = each[int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))]
    return settled


def settle_choices(config: ModelConfig, block: Block, seen: Seen, found: np.ndarray) -> np.ndarray:
    """The expected expert ids [T, top_k]: the found ones where that choice is legal."""
    experts = require_experts(block)
    logits = reference_linear.linear(seen["n"], experts.router)[: len(found)]
    chosen = reference_transformer.route(config, logits)[1].astype(np.int64)
    for row, each in find_legal_choices(config, logits, LOGIT_MARGIN).items():
        if any(set(choice) == set(found[row]) for choice in each):
            chosen[row] = found[row]
    return chosen
