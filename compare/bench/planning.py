"""Bytes and speed of a model on several machines, computed before anything is run.

    bytes of a node    (linears + lm_head + KV cache) of its layers / tensor + activations
    seconds of a step  bytes that all stages read / tensor / (bandwidth * efficiency)
                       + layers * overhead
                       + gathers * latency + gathered bytes * (tensor - 1) / tensor / network
                       + stages * handover + hidden states of a token * (stages - 1) / network

A step is one new token of each sequence of a batch; nodes = tensor * stages. A layer has four
gathers, and lm_head one; stages wait for each other, as a token begins when the last one is sampled
(fast/parallel/). The first term is the roofline (roofline.py) of the largest share; `efficiency` is
what an engine reaches of it on one process. gathers.py measures the other figures. Embeddings are
mapped and read by the row: they take space on disk only. Sizes of 405B: Llama 3, arXiv 2407.21783;
530B: MT-NLG, arXiv 2201.11990; 175B: OPT, arXiv 2205.01068; 70B: Llama 2, arXiv 2307.09288.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.compare.bench.sizes import MODEL_SIZES, ModelSize, llama_size
from planish.fast.parallel.cut import share_rows
from planish.fast.parallel.stages import stage_layers
from planish.reference.model.transformer import PREFILL_CHUNK

GATHERS = 4  # of a layer: context, o, the MLP's inner width, down
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense model's dimensions. gated: whether its MLP has a gate."""

    size: ModelSize
    gated: bool = True

    @property
    def linears(self) -> dict[str, tuple[int, int, int]]:
        """N, K and how many of each linear of a layer."""
        one, query = self.size, self.size.heads * self.size.head_dim
        kv = one.kv_heads * one.head_dim
        return {
            "q": (query, one.hidden, 1),
            "kv": (kv, one.hidden, 2),
            "o": (one.hidden, query, 1),
            "up": (one.ffn, one.hidden, 2 if self.gated else 1),
            "down": (one.hidden, one.ffn, 1),
        }


def resize(name: str, base: ModelSize, vocab: int, gated: bool = True) -> Shape:
    """A shape with another vocabulary."""
    fields = {k: getattr(base, k) for k in ("hidden", "layers", "heads", "kv_heads", "ffn")}
    return Shape(size=ModelSize(name=name, vocab=vocab, **fields), gated=gated)


SHAPES = {name: Shape(size=MODEL_SIZES[name]) for name in ("110M", "1.1B", "7B")} | {
    "70B": Shape(size=llama_size("70B", 8192, 80, (64, 8), 28672)),
    "175B": resize("175B", llama_size("", 12288, 96, (96, 96), 49152), 50272, gated=False),
    "405B": resize("405B", llama_size("", 16384, 126, (128, 8), 53248), 128256),
    "530B": resize("530B", llama_size("", 20480, 105, (128, 128), 81920), 51200, gated=False),
}


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes of a recipe's linears: of a weight, and of a scale, of which a row or group has one."""

    weight: float
    scale: int
    group_size: int | None = None

    def count(self, outputs: int, inputs: int) -> float:
        """Bytes of a linear [N, K]."""
        groups = 1 if self.group_size is None else -(-inputs // self.group_size)
        return outputs * (inputs * self.weight + groups * self.scale)


RECIPES = {
    "W8A8": Storage(weight=1, scale=4),
    "W4A8": Storage(weight=0.5, scale=2, group_size=128),
    "W4A8-g32": Storage(weight=0.5, scale=2, group_size=32),
    "float32": Storage(weight=4, scale=0),
}
HEADS = {"float": "float32", "int8": "W8A8", "int4": "W4A8"}  # lm_head, as a recipe stores it
KV_CACHES = {"float32": (FLOAT, 0), "int8": (1, FLOAT)}  # bytes of a number, and of a head's scale


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Equal machines, or processes of one. Rates in bytes per second, latency in seconds.

    efficiency: of the memory's bandwidth, what one process reaches. memory: bytes of each.
    overhead: seconds of a layer beside reading. handover: seconds from one stage to the next.
    """

    nodes: int
    stages: int = 1
    memory: float
    bandwidth: float
    network: float
    latency: float
    efficiency: float = 1.0
    overhead: float = 0.0
    handover: float = 0.0

    @property
    def tensor(self) -> int:
        """The nodes of a stage."""
        return self.nodes // self.stages


@dataclass(frozen=True, kw_only=True)
class Use:
    """What is run: `batch` sequences of `context` tokens each."""

    batch: int = 1
    context: int = 2048
    kv_cache: str = "float32"
    lm_head: str = "float"


def count_weights(shape: Shape, recipe: str, nodes: int, lm_head: str = "float") -> float:
    """Bytes of the linears and of lm_head of the largest share."""
    layers = shape.size.layers * count_layer(shape, recipe, nodes)
    return layers + count_head(shape, lm_head, nodes)


def count_layer(shape: Shape, recipe: str, nodes: int) -> float:
    """Bytes of a layer's linears."""
    stored = RECIPES[recipe]
    return sum(
        count * stored.count(share(outputs, nodes), inputs)
        for outputs, inputs, count in shape.linears.values()
    )


def count_head(shape: Shape, lm_head: str, nodes: int) -> float:
    """Bytes of lm_head."""
    return RECIPES[HEADS[lm_head]].count(share(shape.size.vocab, nodes), shape.size.hidden)


def count_stage(shape: Shape, recipe: str, use: Use, machines: Machines) -> tuple[float, float]:
    """Bytes of weights, and of keys and values, of the stage that has most of both together."""
    layer, layers = count_layer(shape, recipe, machines.tensor), shape.size.layers
    cache = count_cache(shape, use, machines.tensor) / layers
    parts = [len(part) for part in stage_layers(layers, machines.stages)]
    found = [(count * layer, count * cache) for count in parts]
    found[-1] = (found[-1][0] + count_head(shape, use.lm_head, machines.tensor), found[-1][1])
    return max(found, key=sum)


def share(outputs: int, nodes: int) -> int:
    """The outputs of one node, at most N."""
    return min(share_rows(outputs, 0, nodes).count, outputs)


def count_cache(shape: Shape, use: Use, nodes: int) -> float:
    """Bytes of one node's keys and values, whole where its heads do not divide."""
    size, (number, scale) = shape.size, KV_CACHES[use.kv_cache]
    heads = size.kv_heads / (nodes if size.kv_heads % nodes == 0 else 1)
    return 2 * size.layers * heads * use.batch * use.context * (size.head_dim * number + scale)


def count_activations(shape: Shape, use: Use) -> float:
    """Bytes of a chunk's hidden states, queries, keys, values and inner width, and of logits."""
    size = shape.size
    query, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    width = 3 * size.hidden + 2 * query + 2 * kv + 2 * size.ffn
    return FLOAT * (PREFILL_CHUNK * width + use.batch * size.vocab)


def count_gathered(shape: Shape, use: Use) -> tuple[int, float]:
    """How many gathers a step has, and the bytes of their results."""
    size = shape.size
    of_a_layer = size.heads * size.head_dim + 2 * size.hidden + size.ffn
    numbers = size.layers * of_a_layer + size.vocab
    return GATHERS * size.layers + 1, FLOAT * use.batch * numbers


def step_seconds(shape: Shape, recipe: str, use: Use, machines: Machines) -> dict[str, float]:
    """Seconds of one step: reading, overheads, gathering, handing over, and all of them."""
    nodes, stages = machines.tensor, machines.stages
    read = count_weights(shape, recipe, nodes, use.lm_head) + count_cache(shape, use, nodes)
    gathers, gathered = count_gathered(shape, use)
    moved = gathered * (nodes - 1) / nodes / machines.network
    hidden = FLOAT * use.batch * shape.size.hidden * (stages - 1)
    found = {
        "reading": read / (machines.bandwidth * machines.efficiency),
        "overheads": shape.size.layers * machines.overhead,
        "gathering": gathers * machines.latency + moved if nodes > 1 else 0.0,
        "handing": stages * machines.handover + hidden / machines.network if stages > 1 else 0.0,
    }
    return found | {"step": sum(found.values())}


def plan_shape(shape: Shape, recipe: str, use: Use, machines: Machines) -> dict[str, Any]:
    """One row of the plan: bytes of a node, whether they fit, and tokens per second."""
    weights, cache = count_stage(shape, recipe, use, machines)
    parts = {
        "weights": weights,
        "kv_cache": cache,
        "activations": count_activations(shape, use),
    }
    total, seconds = sum(parts.values()), step_seconds(shape, recipe, use, machines)
    return {
        "shape": shape.size.name,
        "recipe": recipe,
        "nodes": machines.nodes,
        "stages": machines.stages,
        **parts,
        "total": total,
        "fits": total <= machines.memory,
        **seconds,
        "tokens_per_second": use.batch / seconds["step"],
    }
