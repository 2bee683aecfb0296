"""Routers near a tie: where two experts score alike, the choice that was found is judged.

Scores are floats. If the last expert chosen and the first one left out differ by less than rounding
may move them, both choices are right, and they give different outputs. So for such a row the
reference is computed again with each choice that a right engine may make, and what was found is
held against the nearest of them. A choice of any other expert is near none of them.

How far rounding may move a score depends on what comes before the router. Where both sides read
the same rows it is 1e-5; inside a block it is three times what the reference's own scores move
when the block's input is disturbed by 2e-6 (perturbation.py), for a code that flips in attention
moves them more.
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

SCORE_MARGIN = 1e-5  # of scores, or of a score where it is larger
DISTURBANCE = np.float32(2e-6)
FACTOR = 3.0
MOST_CHOICES = 8  # of one row

Choices = dict[int, list[np.ndarray]]  # by row: the experts of each choice, the reference's first


def moe_of(config: ModelConfig) -> Moe:
    """The mixture's sizes."""
    if config.moe is None:
        raise ValueError("the model has no experts")
    return config.moe


def legal_choices(config: ModelConfig, scores: np.ndarray, margin: float) -> Choices:
    """The choices that a right engine may make, for the rows of scores [T, E] that have several."""
    top_k, found = moe_of(config).top_k, Choices()
    if top_k == scores.shape[1]:
        return found
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    allowed = margin * np.maximum(1, np.abs(ranked[:, top_k]))
    for row in np.flatnonzero(ranked[:, top_k - 1] - ranked[:, top_k] <= allowed):
        kept = order[row][ranked[row] > ranked[row, top_k] + allowed[row]]
        near = order[row][len(kept) :]
        near = near[scores[row, near] >= ranked[row, top_k - 1] - allowed[row]]
        others = itertools.combinations(near, top_k - len(kept))
        some = itertools.islice(others, MOST_CHOICES)
        found[int(row)] = [np.array([*kept, *other], np.int64) for other in some]
    return found


def routing_weights(config: ModelConfig, scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The weight of each chosen expert, scores [E] -> [top_k], as the reference's route has it."""
    weights = softmax(scores)[chosen]
    return weights / np.sum(weights) if moe_of(config).normalized else weights


def block_margin(config: ModelConfig, block: Block, seen: Seen) -> float:
    """How far rounding before the router may move a block's scores."""
    experts = block.mlp
    if not isinstance(experts, Experts):
        return 0.0
    hidden = len(float_weight(experts.router))
    width = seen["n"].shape[1]
    no_more = Linear(np.zeros((width, hidden), np.float32))
    short = replace(block, mlp=Mlp(None, experts.router, no_more))  # nothing after the router
    noise = np.random.default_rng(0).standard_normal(seen["x"].shape, np.float32)
    moved: Seen = {}
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)
    given = seen["x"] * (1 + DISTURBANCE * noise), np.arange(len(noise)), (nothing, nothing)
    reference_transformer.block_forward(config, short, *given, moved.__setitem__)
    scores, others = (reference_linear.linear(n, experts.router) for n in (seen["n"], moved["up"]))
    change = np.abs(others - scores) / np.maximum(1, np.abs(scores))
    return max(SCORE_MARGIN, FACTOR * float(change.max()))


def mixtures(
    config: ModelConfig, experts: Experts, n: np.ndarray, choices: Choices
) -> dict[int, np.ndarray]:
    """By row of n [T, D]: the mixture's output for each choice, [choices, D].

    Every expert is computed once, for all rows that need it.
    """
    scores = reference_linear.linear(n, experts.router)
    outputs: dict[tuple[int, int], np.ndarray] = {}
    wanted = {(int(e), row) for row, each in choices.items() for c in each for e in c}
    for expert, pairs in itertools.groupby(sorted(wanted), key=lambda pair: pair[0]):
        rows = [row for _, row in pairs]
        mixed = reference_transformer.mlp(config, experts.experts[expert], n[rows])
        outputs |= {(expert, row): y for row, y in zip(rows, mixed, strict=True)}

    def output(row: int, chosen: np.ndarray) -> np.ndarray:
        weights = dict(zip(chosen, routing_weights(config, scores[row], chosen), strict=True))
        return np.sum([weights[e] * outputs[int(e), row] for e in sorted(weights)], axis=0)

    return {row: np.stack([output(row, c) for c in each]) for row, each in choices.items()}


def nearest(expected: np.ndarray, found: np.ndarray, options: dict[int, np.ndarray]) -> np.ndarray:
    """Expected [T, D], some rows replaced by the option [choices, D] that is nearest to found."""
    if expected.shape != found.shape or not options:
        return expected
    settled = expected.copy()
    for row, each in options.items():
        errors = np.abs(each - found[row]).max(axis=1)
        settled[row] = each[int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))]
    return settled


def decided(config: ModelConfig, block: Block, seen: Seen, found: np.ndarray) -> np.ndarray:
    """The experts [T, top_k] that are expected: those found where that choice is legal."""
    experts: Experts = block.mlp  # type: ignore[assignment]
    scores = reference_linear.linear(seen["n"], experts.router)[: len(found)]
    chosen = reference_transformer.route(config, scores)[1].astype(np.int64)
    for row, each in legal_choices(config, scores, SCORE_MARGIN).items():
        if any(set(choice) == set(found[row]) for choice in each):
            chosen[row] = found[row]
    return chosen
