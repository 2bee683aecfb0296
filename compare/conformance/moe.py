"""Level 2 for a mixture of experts, in the order of execution:

    router   routing   the experts that most tokens chose, one by one   the mixture

The router's scores are floats, and where two experts score alike the two sides may rightly choose
differently: a row is decided if the reference's share of the last chosen expert is above the next
one's by more than the tolerance. Of rows that are not, nothing is asked here.

An expert is judged by itself in a mixture that has no other: its share is then exactly 1, and what
is between its norm and `down`, and `down` behind it, are seen as those of an MLP are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.fused_calls import check_outputs, identity
from planish.compare.conformance.module_checks import check_part, limit
from planish.compare.conformance.on_device import computed, is_native, normed
from planish.compare.conformance.ops import check_output
from planish.compare.conformance.trace import Seen, judged_experts
from planish.fast.model.weights import PlacedExperts
from planish.fast.native import moe as native_moe
from planish.fast.xla import linear as fast_linear
from planish.fast.xla import moe as xla_moe
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig, Moe
from planish.reference.model.layers import softmax
from planish.reference.model.weights import Experts, Mlp

SHARE_TOLERANCE = 1e-5
FEW = 8  # rows, of which the kernels route by themselves


def decided_rows(config: ModelConfig, scores: np.ndarray) -> np.ndarray:
    """Which rows of scores [T, E] leave no doubt about their experts -> bool [T]."""
    moe = moe_of(config)
    if moe.top_k == moe.num_experts:
        return np.ones(len(scores), bool)
    shares = -np.sort(-softmax(scores), axis=1)
    return shares[:, moe.top_k - 1] - shares[:, moe.top_k] > SHARE_TOLERANCE


def moe_of(config: ModelConfig) -> Moe:
    if config.moe is None:
        raise ValueError("the model has no experts")
    return config.moe


def dense(config: ModelConfig, shares: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Shares [T, P] of chosen experts -> [T, E], zero where an expert was not chosen."""
    found = np.zeros((len(shares), moe_of(config).num_experts), np.float32)
    np.put_along_axis(found, chosen, shares, axis=1)
    return found


def check_routing(
    config: ModelConfig, layer: int, router: Linear, placed: PlacedExperts, n: np.ndarray
) -> Iterator[Check]:
    """The router's scores of rows n [T, D]; experts and shares, of many rows and of a few."""
    scores = reference_linear.linear(n, router)
    found = computed(fast_linear.linear, n[None], placed.router)[0]
    yield check_output(layer, "router", router, n, found, level=2)
    native = is_native(placed.up)
    for rows in (len(n), min(FEW, len(n))):
        route = native_moe.route_normed if native else xla_moe.route_normed
        given = config, placed, normed(n[:rows])
        _, shares, chosen = computed(route, *given, static=(0,))
        expected = dense(config, *reference_transformer.route(config, scores[:rows]))
        sure = decided_rows(config, scores[:rows])
        part = f"shares of {rows} rows"
        found = dense(config, shares, chosen)
        yield check(2, layer, part, expected[sure], found[sure], SHARE_TOLERANCE)


def one_expert(placed: PlacedExperts, index: int) -> PlacedExperts:
    """The placed experts without all but one, and a router that knows of no other."""

    def cut(stack: Linear | None) -> Any:
        return jax.tree.map(lambda array: np.asarray(array)[index : index + 1], stack)

    router = Linear(np.zeros((1, placed.router.weight.shape[1]), np.float32))
    parts = {name: cut(getattr(placed, name)) for name in ("gate", "up", "down")}
    return replace(placed, router=router, **parts)


def alone(config: ModelConfig) -> ModelConfig:
    """The config of a mixture of one expert."""
    return replace(config, moe=replace(moe_of(config), num_experts=1, top_k=1))


def check_expert(
    config: ModelConfig, layer: int, name: str, stored: Mlp, placed: PlacedExperts, rows: np.ndarray
) -> Iterator[Check]:
    """One expert, placed alone: rows [T, D] to its `down`, and natively `down` behind that."""
    native = is_native(placed.down)
    hand_on = identity(stored.down.weight.shape[1], native)
    through = replace(placed, down=jax.tree.map(lambda array: np.asarray(array)[None], hand_on))
    expected, found = hidden(config, stored, rows), through_one(config, through, rows)
    yield from check_part(layer, name, expected, found, {f"{name}.down": stored.down}, native)
    if native and np.isfinite(found).all():
        whole = through_one(config, placed, rows)
        yield check_outputs(layer, f"{name}.down", stored.down, found, whole)


def through_one(config: ModelConfig, placed: PlacedExperts, rows: np.ndarray) -> np.ndarray:
    """Rows [T, D] through the only expert of a mixture."""
    if is_native(placed.up):
        given = alone(config), placed, normed(rows)
        return computed(native_moe.mixture, *given, static=(0,))[0]
    here = np.ones(len(rows), bool)
    return computed(xla_moe.one_expert, config, placed, np.int32(0), rows, here, static=(0,))


def hidden(config: ModelConfig, stored: Mlp, rows: np.ndarray) -> np.ndarray:
    """What an expert's `down` reads of rows [T, D], by the reference."""
    seen: Seen = {}
    reference_transformer.mlp(config, stored, rows, seen.__setitem__)
    return seen["down"]


def check_mixture(
    config: ModelConfig,
    layer: int,
    stored: Experts,
    placed: PlacedExperts,
    seen: Seen,
    share: float,
) -> Iterator[Check]:
    """All between the norm and the residual. `share`: the tolerance of a whole block's output."""
    n, mixed = seen["n"], seen["mixed"]
    yield from check_routing(config, layer, stored.router, placed, n)
    for index in judged_experts(stored, seen):
        name = f"experts.{index}"
        rows, one = seen[f"{name}.up"], one_expert(placed, index)
        yield from check_expert(config, layer, name, stored.experts[index], one, rows)
    sure = decided_rows(config, reference_linear.linear(n, stored.router))
    found = computed(native_moe.mixture, config, placed, normed(n), static=(0,))[0]
    yield check(2, layer, "mixture", mixed[sure], found[sure], limit(mixed, share))
