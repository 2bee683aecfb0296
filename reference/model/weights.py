"""The weights of a model: the dataclasses that reference/model/transformer.py computes with.

A linear's name in its block is `q`, `k`, `v`, `o`, `gate`, `up` or `down`; in a mixture of experts,
`router` and, for expert 3, `experts.3.gate`. A norm's name is that of its field.

H query heads, K key-value heads, Hd head width, D model width, F feed-forward width, E experts (of
a router) or embedding width (of a model), V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import LayerKind
from planish.reference.model.layers import Norm
from planish.reference.quantized import QuantizedWeight

NORMS = (
    "attention_norm",
    "q_norm",
    "k_norm",
    "attention_output_norm",
    "mlp_norm",
    "mlp_output_norm",
)


@dataclass(frozen=True)
class Mlp:
    """One MLP, or one expert. `gate` is None if the MLP is not gated."""

    gate: Linear | None  # [F, D]
    up: Linear  # [F, D]
    down: Linear  # [D, F]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: the router, in float, scores them, and the top_k are computed."""

    router: Linear  # [E, D]
    experts: Sequence[Mlp]


@dataclass(frozen=True)
class Block:
    """One layer. A norm is None if the model has no norm there (ModelConfig.norm_placement)."""

    kind: LayerKind
    attention_norm: Norm | None
    q: Linear  # [H * Hd, D]
    k: Linear  # [K * Hd, D]
    v: Linear  # [K * Hd, D]
    q_norm: Norm | None
    k_norm: Norm | None
    o: Linear  # [D, H * Hd]
    attention_output_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Mlp | Experts
    mlp_output_norm: Norm | None
    attention_scales: AttentionScales | None = None  # where the model was calibrated for them


@dataclass(frozen=True)
class Weights:
    """A model. `blocks` may be lazy: it is only indexed, or iterated in order."""

    embed: np.ndarray | QuantizedWeight  # [V, E]
    positions: np.ndarray | None  # [max_positions + offset, D]
    project_in: Linear | None  # [D, E]
    embed_norm: Norm | None
    blocks: Sequence[Block]
    final_norm: Norm | None
    project_out: Linear | None  # [E, D]
    head: Linear  # [V, E]


def block_norms(block: Block) -> dict[str, Norm]:
    """The norms of a block, by name."""
    found = {name: getattr(block, name) for name in NORMS}
    return {name: norm for name, norm in found.items() if norm is not None}


def block_linears(block: Block) -> dict[str, Linear]:
    """The linears of a block by name, in execution order."""
    return {name: getattr(block, name) for name in "qkvo"} | mlp_linears(block.mlp)


def mlp_linears(mlp: Mlp | Experts) -> dict[str, Linear]:
    """The linears of an MLP or of a mixture of experts, by name."""
    if isinstance(mlp, Mlp):
        found = {"gate": mlp.gate, "up": mlp.up, "down": mlp.down}
        return {name: linear for name, linear in found.items() if linear is not None}
    named = {"router": mlp.router}
    for index, expert in enumerate(mlp.experts):
        named |= {f"experts.{index}.{name}": x for name, x in mlp_linears(expert).items()}
    return named


def split_expert(name: str) -> tuple[str, int | None]:
    """experts.3.gate -> experts.gate and 3; any other name -> itself and None."""
    found = re.fullmatch(r"experts\.(\d+)\.(\w+)", name)
    return (f"experts.{found[2]}", int(found[1])) if found else (name, None)


def build_block(
    kind: LayerKind,
    linears: Mapping[str, Linear],
    norms: Mapping[str, Norm],
    experts: Sequence[Mlp] | None = None,
) -> Block:
    """A block from its linears and norms, by name; `experts` replaces linears named experts.*."""
    fields: dict[str, Any] = {name: linears[name] for name in "qkvo"}
    fields |= {name: norms.get(name) for name in NORMS}
    return Block(kind=kind, mlp=_build_mlp(linears, experts), **fields)


def _build_mlp(linears: Mapping[str, Linear], experts: Sequence[Mlp] | None) -> Mlp | Experts:
    if "router" not in linears:
        return Mlp(linears.get("gate"), linears["up"], linears["down"])
    return Experts(linears["router"], _build_experts(linears) if experts is None else experts)


def _build_experts(linears: Mapping[str, Linear]) -> Sequence[Mlp]:
    count = 1 + max(int(name.split(".")[1]) for name in linears if name.startswith("experts."))
    experts = []
    for index in range(count):
        gate, up, down = (f"experts.{index}.{name}" for name in ("gate", "up", "down"))
        experts.append(Mlp(linears.get(gate), linears[up], linears[down]))
    return tuple(experts)


def replace_modules(block: Block, modules: Mapping[str, Linear | Norm]) -> Block:
    """The block with some of its linears and norms replaced, by name."""
    own = {name: module for name, module in modules.items() if name in (*NORMS, *"qkvo")}
    inner = {name: module for name, module in modules.items() if name not in own}
    changed: dict[str, Any] = {**own, "mlp": _replace_in_mlp(block.mlp, inner)}
    return replace(block, **changed)


def _replace_in_mlp(mlp: Mlp | Experts, linears: Mapping[str, Any]) -> Mlp | Experts:
    if isinstance(mlp, Mlp):
        return replace(mlp, **linears)
    experts = []
    for index, expert in enumerate(mlp.experts):
        prefix = f"experts.{index}."
        own = {n.removeprefix(prefix): new for n, new in linears.items() if n.startswith(prefix)}
        experts.append(replace(expert, **own))
    return Experts(linears.get("router", mlp.router), tuple(experts))
