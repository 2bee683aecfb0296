"""Level 2 for a mixture of experts, in the order of execution:

    router   routing weights   each of the experts that most tokens chose   the mixture

Near a tie more than one choice of experts is right (routing.py).

An expert is judged alone, as if it were chosen with a routing weight of exactly 1. The modules from
its norm to `down`, and then `down`, are checked as those of an MLP (layers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planish.compare.conformance.block_case import BlockCase
from planish.compare.conformance.check import Check, check
from planish.compare.conformance.fused_calls import check_outputs, identity_linear
from planish.compare.conformance.module_checks import check_module, share_of_largest
from planish.compare.conformance.ops import Op, check_output
from planish.compare.conformance.routing import (
    LOGIT_MARGIN,
    mix_choices,
    require_moe,
    routing_weights,
    settle_choices,
    take_nearest,
)
from planish.compare.conformance.trace import select_experts
from planish.reference import linear as reference_linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Mlp

WEIGHT_TOLERANCE = 1e-5
FEW = 8  # rows; up to this many the kernels route by another path


def check_mixture(case: BlockCase, share: float) -> Iterator[Check]:
    """All modules between the norm and the residual. share: a whole block's relative tolerance."""
    experts, n, mixed = case.experts, case.seen["n"], case.seen["mixed"]
    yield from check_routing(case)
    for index in select_experts(experts, case.seen):
        rows = case.seen[f"experts.{index}.up"]
        yield from check_expert(case, f"experts.{index}", experts.experts[index], rows)
    found = case.modules.mixture(case.config, experts, n)
    choices = case.choices(LOGIT_MARGIN)
    expected = take_nearest(mixed, found, mix_choices(case.config, experts, n, choices))
    yield check(2, case.layer, "mixture", expected, found, share_of_largest(mixed, share))


def check_routing(case: BlockCase) -> Iterator[Check]:
    """Router logits; then expert ids and routing weights, of many rows and of a few."""
    n, router = case.seen["n"], case.experts.router
    op = Op(layer=case.layer, part="router", linear=router, level=2)
    yield check_output(op, "", n, case.modules.linear(n, router))
    for count in (len(n), min(FEW, len(n))):
        weights, chosen = case.modules.route(case.config, case.experts, n[:count])
        part = f"routing weights of {count} rows"
        expected = expect_weights(case, chosen)
        yield check(
            2,
            case.layer,
            part,
            expected,
            scatter_weights(case.config, weights, chosen),
            WEIGHT_TOLERANCE,
        )


def expect_weights(case: BlockCase, found: np.ndarray) -> np.ndarray:
    """The reference's routing weights [T, E], for the found choice of experts where it is legal."""
    logits = reference_linear.linear(case.seen["n"], case.experts.router)[: len(found)]
    chosen = settle_choices(case.config, case.block, case.seen, found)
    rows = [routing_weights(case.config, *pair) for pair in zip(logits, chosen, strict=True)]
    return scatter_weights(case.config, np.stack(rows), chosen)


def scatter_weights(config: ModelConfig, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Routing weights [T, top_k] -> [T, E], zero for experts that were not chosen."""
    found = np.zeros((len(weights), require_moe(config).num_experts), np.float32)
    np.put_along_axis(found, chosen, weights, axis=1)
    return found


def check_expert(case: BlockCase, name: str, stored: Mlp, rows: np.ndarray) -> Iterator[Check]:
    """One expert alone: from rows [T, D] to its `down`; natively `down` too."""
    native = case.modules.fuses([stored.down])
    pass_through = identity_linear(stored.down.weight.shape[1], native)
    found = case.modules.expert(case.config, replace(stored, down=pass_through), rows)
    given = {"expected": trace_down_input(case.config, stored, rows), "found": found}
    readers = {f"{name}.down": stored.down}
    yield from check_module(case.layer, name, **given, readers=readers, codes=case.codes)
    if native and np.isfinite(found).all():
        whole = case.modules.expert(case.config, stored, rows)
        yield check_outputs(case.layer, f"{name}.down", stored.down, found, whole)


def trace_down_input(config: ModelConfig, stored: Mlp, rows: np.ndarray) -> np.ndarray:
    """The input of an expert's `down` for rows [T, D], by the reference."""
    seen: dict[str, np.ndarray] = {}
    reference_transformer.mlp(config, stored, rows, seen.__setitem__)
    return seen["down"]
