"""The roofline of a model: how much a token reads and multiplies, and how fast that can go.

    decoding    every step reads the cache and the weights once (of experts the chosen ones):
                tokens/s <= batch * memory bandwidth / bytes of a step
    a prompt    every token is multiplied by every weight:
                tokens/s <= operations per second / (2 * weights)

After Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785. Bytes are
counted as stored. A model that fits into the processor's caches can exceed the first bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from planish.reference.files.load import Checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.model.shapes import block_shapes, outer_shapes
from planish.reference.model.weights import split_expert


def count_token_bytes(checkpoint: Checkpoint) -> int:
    """Stored bytes that one token must read: of the experts those that it chooses."""
    chosen = count_expert_bytes(checkpoint) * active_share(checkpoint.config)
    return count_dense_bytes(checkpoint) + round(chosen)


def count_dense_bytes(checkpoint: Checkpoint) -> int:
    """Stored bytes that every token reads: all weights except the experts and the embedding.

    A token reads one row of the embedding. A tied embedding is read whole, as lm_head, unless
    lm_head is stored separately.
    """
    config, rows_only = checkpoint.config, {checkpoint.prefix("embed") + ".weight"}
    if config.tie_embeddings and checkpoint.prefix("head") + ".weight" not in checkpoint.entries:
        rows_only = set()
    if "positions" in outer_shapes(config):
        rows_only.add(checkpoint.prefix("positions") + ".weight")
    rows_only |= find_expert_tensors(checkpoint)
    return sum_stored_bytes(checkpoint, checkpoint.entries.keys() - rows_only)


def count_expert_bytes(checkpoint: Checkpoint) -> int:
    """Stored bytes of all experts."""
    return sum_stored_bytes(checkpoint, find_expert_tensors(checkpoint))


def sum_stored_bytes(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    """Bytes of some tensors in the checkpoint's files."""
    return sum(checkpoint.entries[name].size for name in names)


def find_expert_tensors(checkpoint: Checkpoint) -> set[str]:
    """Names of the tensors that hold experts, one expert each or all of a layer stacked."""
    config = checkpoint.config
    prefixes = {
        checkpoint.stored_prefix(part, layer)
        for layer in range(config.num_layers)
        for part in block_shapes(config, layer)
        if split_expert(part)[1] is not None
    }
    return {name for name in checkpoint.entries if name.rpartition(".")[0] in prefixes}


def active_share(config: ModelConfig, batch: int = 1) -> float:
    """Expected share of the experts that a step of `batch` tokens reads, chosen at random."""
    if config.moe is None:
        return 1.0
    return 1 - (1 - config.moe.top_k / config.moe.num_experts) ** batch


def count_cache_bytes(config: ModelConfig, slots: float) -> float:
    """Bytes of the keys and values that one token reads, of `slots` or those of the window."""
    of_a_head = {"float32": 4 * config.head_dim, "int8": config.head_dim + 4}
    width = of_a_head.get(config.kv_cache, config.head_dim)  # static scales take none
    read = sum(min(slots, kind.window or slots) for kind in config.layers)
    return read * 2 * config.num_kv_heads * width


def count_token_weights(config: ModelConfig) -> int:
    """Weights that each prompt token is multiplied by; lm_head is needed for the last one only."""
    total, chosen = 0, active_share(config)
    for layer in range(config.num_layers):
        for part, (shape, _) in block_shapes(config, layer).items():
            share = 1.0 if split_expert(part)[1] is None else chosen
            total += round(math.prod(shape) * share)
    return total


def bound_prompt(config: ModelConfig, operations_per_second: float) -> float:
    """Prompt tokens per second at this peak rate: a multiplication and an addition per weight."""
    return operations_per_second / (2 * count_token_weights(config))


def bound_decoding(
    config: ModelConfig,
    *,
    weight_bytes: int,
    expert_bytes: int,
    batch: int,
    slots: float,
    bytes_per_second: float,
) -> float:
    """New tokens per second of `batch` sequences with `slots` tokens in the cache of each.

    weight_bytes: what one token reads. A batch reads more experts than one token does, out of
    expert_bytes for all of them.
    """
    more = active_share(config, batch) - active_share(config)
    step = weight_bytes + more * expert_bytes + batch * count_cache_bytes(config, slots)
    return batch * bytes_per_second / step
