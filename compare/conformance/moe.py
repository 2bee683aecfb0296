"""Level 2 for a mixture of experts, in the order of execution:

    router   routing weights   the experts that most tokens chose, one by one   the mixture

The router's scores are floats; where two experts score alike the choice that was found is judged
(routing.py).

An expert is judged by itself, as if it were chosen with a routing weight of exactly 1; what
is between its norm and `down`, and `down` after it, are seen as those of an MLP are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planish.compare.conformance.block_case import BlockCase
from planish.compare.conformance.check import Check, check
from planish.compare.conformance.fused_calls import check_outputs, identity
from planish.compare.conformance.module_checks import check_module, limit
from planish.compare.conformance.ops import Op, check_output
from planish.compare.conformance.routing import (
    SCORE_MARGIN,
    decided,
    mixtures,
    moe_of,
    nearest,
    routing_weights,
)
from planish.compare.conformance.trace import judged_experts
from planish.reference import linear as reference_linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Mlp

WEIGHT_TOLERANCE = 1e-5
FEW = 8  # rows, of which the kernels route by themselves


def check_mixture(case: BlockCase, share: float) -> Iterator[Check]:
    """All between the norm and the residual. `share`: the tolerance of a whole block's output."""
    experts, n, mixed = case.experts, case.seen["n"], case.seen["mixed"]
    yield from check_routing(case)
    for index in judged_experts(experts, case.seen):
        rows = case.seen[f"experts.{index}.up"]
        yield from check_expert(case, f"experts.{index}", experts.experts[index], rows)
    found = case.modules.mixture(case.config, experts, n)
    choices = case.choices(SCORE_MARGIN)
    expected = nearest(mixed, found, mixtures(case.config, experts, n, choices))
    yield check(2, case.layer, "mixture", expected, found, limit(mixed, share))


def check_routing(case: BlockCase) -> Iterator[Check]:
    """The router's scores; the chosen experts and their weights, of many rows and of a few."""
    n, router = case.seen["n"], case.experts.router
    op = Op(layer=case.layer, part="router", linear=router, level=2)
    yield check_output(op, "", n, case.modules.linear(n, router))
    for count in (len(n), min(FEW, len(n))):
        weights, chosen = case.modules.route(case.config, case.experts, n[:count])
        part = f"routing weights of {count} rows"
        expected = expected_weights(case, chosen)
        yield check(
            2, case.layer, part, expected, dense(case.config, weights, chosen), WEIGHT_TOLERANCE
        )


def expected_weights(case: BlockCase, found: np.ndarray) -> np.ndarray:
    """The reference's routing weights [T, E], by the choice that was found where it is legal."""
    scores = reference_linear.linear(case.seen["n"], case.experts.router)[: len(found)]
    chosen = decided(case.config, case.block, case.seen, found)
    rows = [routing_weights(case.config, *pair) for pair in zip(scores, chosen, strict=True)]
    return dense(case.config, np.stack(rows), chosen)


def dense(config: ModelConfig, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Weights [T, top_k] of chosen experts -> [T, E], zero where an expert was not chosen."""
    found = np.zeros((len(weights), moe_of(config).num_experts), np.float32)
    np.put_along_axis(found, chosen, weights, axis=1)
    return found


def check_expert(case: BlockCase, name: str, stored: Mlp, rows: np.ndarray) -> Iterator[Check]:
    """One expert alone: rows [T, D] to its `down`, and natively `down` after that."""
    native = case.modules.fuses([stored.down])
    hand_on = identity(stored.down.weight.shape[1], native)
    found = case.modules.expert(case.config, replace(stored, down=hand_on), rows)
    given = {"expected": hidden(case.config, stored, rows), "found": found}
    readers = {f"{name}.down": stored.down}
    yield from check_module(case.layer, name, **given, readers=readers, codes=case.codes)
    if native and np.isfinite(found).all():
        whole = case.modules.expert(case.config, stored, rows)
        yield check_outputs(case.layer, f"{name}.down", stored.down, found, whole)


def hidden(config: ModelConfig, stored: Mlp, rows: np.ndarray) -> np.ndarray:
    """What an expert's `down` reads of rows [T, D], by the reference."""
    seen: dict[str, np.ndarray] = {}
    reference_transformer.mlp(config, stored, rows, seen.__setitem__)
    return seen["down"]
