"""The reference's own way through one block: what each of its modules reads and gives.

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
from planish.reference.model.weights import Block, Experts, Mlp, block_linears, mlp_linears

MOST_EXPERTS = 4  # of a block are judged one by one: those that most tokens chose
Past = tuple[np.ndarray, np.ndarray]
Seen = dict[str, np.ndarray]


def trace_block(config: ModelConfig, block: Block, x: np.ndarray) -> tuple[Seen, Past]:
    """The reference's block over hidden states x [T, D], and its keys and values.

    By name: the input of each linear; `x`; `n`, the input of the MLP or of the experts;
    `attended` and `mixed`, the outputs of attention and MLP; `out`.
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


def judged_experts(mixture: Experts, seen: Seen) -> list[int]:
    """The experts that are judged one by one, in their order."""
    names = (f"experts.{index}.up" for index in range(len(mixture.experts)))
    rows = [len(seen.get(name, ())) for name in names]
    most = sorted(range(len(rows)), key=lambda index: -rows[index])[:MOST_EXPERTS]
    return sorted(index for index in most if rows[index])


def judged_linears(block: Block, seen: Seen) -> dict[str, Linear]:
    """The linears of a block that are judged, by name, in the order of execution."""
    if isinstance(block.mlp, Mlp):
        return block_linears(block)
    found: dict[str, Linear] = {name: getattr(block, name) for name in "qkvo"}
    found["router"] = block.mlp.router
    for index in judged_experts(block.mlp, seen):
        parts = vars(block.mlp.experts[index]).items()
        found |= {f"experts.{index}.{part}": linear for part, linear in parts if linear is not None}
    return found


def activations(block: Block) -> set[str]:
    """How a block's linears treat their inputs."""
    if isinstance(block.mlp, Mlp):
        return {linear.activation for linear in block_linears(block).values()}
    expert, found = block.mlp.experts[0], {getattr(block, name).activation for name in "qkvo"}
    return found | {linear.activation for linear in mlp_linears(expert).values()}


@dataclass(frozen=True)
class NormPlace:
    """A norm, what it reads and what it should give, and the linears that read that."""

    name: str
    given: np.ndarray
    expected: np.ndarray
    readers: tuple[str, ...] = ()


def norm_places(
    config: ModelConfig, block: Block, seen: Seen
) -> tuple[list[NormPlace], list[NormPlace], list[NormPlace]]:
    """The norms before attention, between it and the MLP, and after the MLP."""
    x, inner = seen["x"], tuple(name for name in ("gate", "up") if name in seen)
    attended, mixed = seen["attended"], seen["mixed"]
    if config.norm_placement == "post":
        first = NormPlace("attention_norm", x + attended, seen["n"], inner)
        return [], [first], [NormPlace("mlp_norm", seen["n"] + mixed, seen["out"])]
    shared = inner if config.shared_norm else ()
    first = NormPlace("attention_norm", x, seen["q"], (*"qkv", *shared))
    if config.parallel:
        second = NormPlace("mlp_norm", x, seen["n"], inner)
        return [first] if config.shared_norm else [first, second], [], []
    added, last = attended, list[NormPlace]()
    between = list[NormPlace]()
    if config.norms_output:
        added = normalize(attended, block.attention_output_norm)
        between.append(NormPlace("attention_output_norm", attended, added))
        given = normalize(mixed, block.mlp_output_norm)
        last.append(NormPlace("mlp_output_norm", mixed, given))
    if config.norms_before:
        between.append(NormPlace("mlp_norm", x + added, seen["n"], inner))
    return [first] if config.norms_before else [], between, last


def block_output(
    config: ModelConfig, block: Block, seen: Seen, rows: np.ndarray, mixed: np.ndarray
) -> np.ndarray:
    """What the block gives in some rows [R] if its MLP or mixture gives `mixed` [R, D] there."""
    x, attended = seen["x"][rows], seen["attended"][rows]
    if config.norm_placement == "post":
        return normalize(seen["n"][rows] + mixed, block.mlp_norm)
    if config.parallel:
        return x + attended + mixed
    x = x + normalize(attended, block.attention_output_norm)
    return x + normalize(mixed, block.mlp_output_norm)
