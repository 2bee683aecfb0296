"""Trace the reference through one block: the input and the output of each module.

norm_placement   pre        attention_norm  attention  mlp_norm  mlp
                 post       attention  attention_norm  mlp  mlp_norm
                 output     attention  attention_output_norm  mlp  mlp_output_norm
                 sandwich   all four, in the order of execution
parallel                    attention_norm (mlp_norm)  attention  mlp
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import normalize
from planish.reference.model.transformer import Past
from planish.reference.model.weights import Block, Experts, Mlp, block_linears, mlp_linears

MOST_EXPERTS = 4  # judged one by one in each block: those that most tokens chose
Seen = dict[str, np.ndarray]


def trace_block(config: ModelConfig, block: Block, x: np.ndarray) -> tuple[Seen, Past]:
    """Run the reference's block over x [T, D]; return every intermediate result, and keys, values.

    Seen, by name: the input of each linear; `x`; `n`, the input of the MLP or of the experts;
    `attended` and `mixed`, the outputs of attention and of the MLP; `out`.
    """
    seen = {"x": x}
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)

    def tap(name: str, value: np.ndarray) -> None:
        seen.setdefault(name, value)

    positions = np.arange(len(x))
    out, past = reference_transformer.block_forward(
        config, block, x, positions, (nothing, nothing), tap
    )
    seen["n"] = seen["router" if isinstance(block.mlp, Experts) else "up"]
    seen["attended"] = reference_linear.linear(seen["o"], block.o)
    if isinstance(block.mlp, Mlp):
        seen["mixed"] = reference_linear.linear(seen["down"], block.mlp.down)
    else:
        seen["mixed"] = reference_transformer.mlp(config, block.mlp, seen["n"])
    return {**seen, "out": out}, past


def select_experts(experts: Experts, seen: Seen) -> list[int]:
    """The indices, ascending, of the experts that are judged one by one."""
    names = (f"experts.{index}.up" for index in range(len(experts.experts)))
    rows = [len(seen.get(name, ())) for name in names]
    most = sorted(range(len(rows)), key=lambda index: -rows[index])[:MOST_EXPERTS]
    return sorted(index for index in most if rows[index])


def select_linears(block: Block, seen: Seen) -> dict[str, Linear]:
    """The linears of a block that are judged, by name, in the order of execution."""
    if isinstance(block.mlp, Mlp):
        return block_linears(block)
    found: dict[str, Linear] = {name: getattr(block, name) for name in "qkvo"}
    found["router"] = block.mlp.router
    for index in select_experts(block.mlp, seen):
        parts = vars(block.mlp.experts[index]).items()
        found |= {f"experts.{index}.{part}": linear for part, linear in parts if linear is not None}
    return found


def collect_activations(block: Block) -> set[str]:
    """The activation granularities of a block's linears."""
    if isinstance(block.mlp, Mlp):
        return {linear.activation for linear in block_linears(block).values()}
    expert, found = block.mlp.experts[0], {getattr(block, name).activation for name in "qkvo"}
    return found | {linear.activation for linear in mlp_linears(expert).values()}


@dataclass(frozen=True)
class NormCase:
    """A norm, its input and expected output [T, D], and the linears that read the output."""

    name: str
    given: np.ndarray
    expected: np.ndarray
    readers: tuple[str, ...] = ()


def list_norms(
    config: ModelConfig, block: Block, seen: Seen
) -> tuple[list[NormCase], list[NormCase], list[NormCase]]:
    """The norms before attention, between it and the MLP, and after the MLP."""
    x, inner = seen["x"], tuple(name for name in ("gate", "up") if name in seen)
    attended, mixed = seen["attended"], seen["mixed"]
    if config.norm_placement == "post":
        first = NormCase("attention_norm", x + attended, seen["n"], inner)
        return [], [first], [NormCase("mlp_norm", seen["n"] + mixed, seen["out"])]
    shared = inner if config.shared_norm else ()
    first = NormCase("attention_norm", x, seen["q"], (*"qkv", *shared))
    if config.parallel:
        second = NormCase("mlp_norm", x, seen["n"], inner)
        return [first] if config.shared_norm else [first, second], [], []
    added, last = attended, list[NormCase]()
    between = list[NormCase]()
    if config.norms_output:
        added = normalize(attended, block.attention_output_norm)
        between.append(NormCase("attention_output_norm", attended, added))
        given = normalize(mixed, block.mlp_output_norm)
        last.append(NormCase("mlp_output_norm", mixed, given))
    if config.norms_before:
        between.append(NormCase("mlp_norm", x + added, seen["n"], inner))
    return [first] if config.norms_before else [], between, last


def compose_output(
    config: ModelConfig, block: Block, seen: Seen, rows: np.ndarray, mixed: np.ndarray
) -> np.ndarray:
    """The block's output [R, D] in some rows [R], if its MLP or mixture gives `mixed` [R, D]."""
    x, attended = seen["x"][rows], seen["attended"][rows]
    if config.norm_placement == "post":
        return normalize(seen["n"][rows] + mixed, block.mlp_norm)
    if config.parallel:
        total: np.ndarray = x + attended + mixed
        return total
    x = x + normalize(attended, block.attention_output_norm)
    y: np.ndarray = x + normalize(mixed, block.mlp_output_norm)
    return y
