"""Who is measured: planish itself by its recipes, and peers. All answer two questions in seconds.

prefill(tokens)                   an empty cache, one prompt, until its last token's logits
decode(tokens, batch, context)    greedy steps of `batch` sequences after `context` tokens each
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from planish.compare.bench.peers import PEERS, installed, peer
from planish.compare.bench.peers.process import PeerProcess
from planish.compare.bench.random_model import write_random
from planish.compare.bench.roofline import cores
from planish.compare.bench.sizes import Shape
from planish.fast.session.engine import Engine
from planish.reference.errors import RecipeError
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.model.shapes import block_shapes, outer_shapes
from planish.reference.model.weights import split_expert
from planish.reference.quantize.recipe import RECIPES
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling

PEER_BITS = {"Q4_0": 4, "int4": 4, "Q8_0": 8, "int8": 8, "bf16": 16}


class Asked(Protocol):
    def prefill(self, tokens: int) -> float: ...
    def decode(self, tokens: int, batch: int = 1, context: int = 1) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One engine with one model. bits: of its weights, by which peers are compared with ours."""

    engine: str
    format: str
    bits: int
    asked: Asked
    bytes: int  # of weights that one token reads
    load_seconds: float
    integer: bool  # activations are INT8, so prompts are bound by integer products
    ours: bool
    version: str = ""
    experts: int = 0  # bytes of all experts, of which a batch reads more than one token does


class Ours:
    """The fast engine as a contender."""

    def __init__(self, checkpoint: Checkpoint, native: bool):
        self.engine = Engine(checkpoint, native)

    def prefill(self, tokens: int) -> float:
        prompts = random_prompts(self.engine.config, 1, tokens)
        start = time.perf_counter()
        next(self.engine.generate(prompts, Stop(1, ignore_eos=True), Sampling()))
        return time.perf_counter() - start

    def decode(self, tokens: int, batch: int = 1, context: int = 1) -> float:
        return decode_seconds(
            self.engine, random_prompts(self.engine.config, batch, context), tokens
        )


def decode_seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Seconds of `tokens` greedy steps after prompts, which are not counted."""
    steps = engine.generate(prompts, Stop(tokens + 1, ignore_eos=True), Sampling())
    for _ in prompts:  # the first token of each row belongs to its prompt
        next(steps)
    start = time.perf_counter()
    for _ in steps:
        pass
    return time.perf_counter() - start


def random_prompts(config: ModelConfig, batch: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, config.vocab_size, (batch, length)).tolist()


def ours(checkpoint: Checkpoint, native: bool, name: str | None = None) -> Contender:
    """planish on a checkpoint."""
    asked, quantization = Ours(checkpoint, native), checkpoint.quantization or {}
    schemes = [scheme for scheme in checkpoint.schemes().values() if scheme is not None]
    integer = any(scheme.activation != "float" for scheme in schemes)
    return Contender(
        engine="planish",
        format=name or quantization.get("recipe", "float"),
        bits=usual_bits(checkpoint),
        asked=asked,
        bytes=bytes_per_token(checkpoint),
        load_seconds=asked.engine.load_seconds,
        integer=integer,
        ours=True,
        experts=expert_bytes(checkpoint),
    )


def usual_bits(checkpoint: Checkpoint) -> int:
    """How wide most linears of the blocks are."""
    schemes, head = checkpoint.schemes(), checkpoint.prefix("head")
    bits = Counter(
        scheme.bits if scheme else 32 for name, scheme in schemes.items() if name != head
    )
    return bits.most_common(1)[0][0]


def parse_recipe(text: str) -> tuple[str, int | None]:
    """W4A8-g32 -> (W4A8, 32); without a group size the recipe's own."""
    name, _, group = text.partition("-g")
    if name not in RECIPES or (group and not group.isdigit()):
        expected = "recipes such as W4A8, W4A8-g32, W8A8"
        raise RecipeError("unknown", name="recipes", expected=expected, found=repr(text))
    return name, int(group) if group else None


def random_contender(
    shape: Shape, recipe: str, directory: Path, native: bool, kv_cache: str
) -> Contender:
    """planish on random weights of a shape, written into the directory if they are not there."""
    name, group = parse_recipe(recipe)
    path = directory / f"{shape.name}-{recipe}"
    if not path.exists():
        write_random(shape, path, name, group)
    checkpoint = open_checkpoint(path)
    config = replace(checkpoint.config, kv_cache=kv_cache)
    return ours(replace(checkpoint, config=config), native, recipe)


def open_peers(
    stack: ExitStack, names: list[str], shape: Shape, bits: set[int], directory: Path | None
) -> tuple[list[Contender], list[str]]:
    """Every format of every peer whose width ours also has, started; and why others are not."""
    found, missing = [], []
    for chosen in map(peer, names):
        if not installed(chosen):
            missing.append(f"{chosen.name}: not installed ({chosen.install})")
            continue
        for form in chosen.formats:
            if PEER_BITS[form] in bits:
                found.append(open_peer(stack, chosen.name, form, shape, directory))
    return found, missing


def open_peer(
    stack: ExitStack, name: str, form: str, shape: Shape, directory: Path | None
) -> Contender:
    """A peer's process, kept until the stack is closed."""
    process = PeerProcess(PEERS[name], shape, form, cores(), directory=directory)
    asked = stack.enter_context(process)
    facts = asked.facts
    return Contender(
        engine=name,
        format=form,
        bits=PEER_BITS[form],
        asked=asked,
        bytes=facts.bytes,
        load_seconds=facts.load_seconds,
        integer=True,
        ours=False,
        version=facts.version,
    )


def shape_of(checkpoint: Checkpoint) -> Shape | None:
    """The shape that peers would need to have for this model; none if it is no Llama."""
    config = checkpoint.config
    if config.model_type != "llama" or config.head_dim * config.num_heads != config.hidden_size:
        return None
    return Shape(
        checkpoint.path.name,
        config.hidden_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.intermediate_size,
        config.vocab_size,
    )


def bytes_per_token(checkpoint: Checkpoint) -> int:
    """Stored bytes that one token must read: of the experts those that it chooses."""
    chosen = expert_bytes(checkpoint) * active_share(checkpoint.config)
    return dense_bytes(checkpoint) + round(chosen)


def dense_bytes(checkpoint: Checkpoint) -> int:
    """Stored bytes that every token reads: all weights except the experts and the embedding.

    Of the embedding a token reads one row; a tied one is read whole, as lm_head, unless lm_head is
    stored separately.
    """
    config, rows_only = checkpoint.config, {checkpoint.prefix("embed") + ".weight"}
    if config.tie_embeddings and checkpoint.prefix("head") + ".weight" not in checkpoint.entries:
        rows_only = set()
    if "positions" in outer_shapes(config):
        rows_only.add(checkpoint.prefix("positions") + ".weight")
    rows_only |= expert_names(checkpoint)
    return stored_bytes(checkpoint, checkpoint.entries.keys() - rows_only)


def expert_bytes(checkpoint: Checkpoint) -> int:
    """Stored bytes of all experts."""
    return stored_bytes(checkpoint, expert_names(checkpoint))


def stored_bytes(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    return sum(checkpoint.entries[name].size for name in names)


def expert_names(checkpoint: Checkpoint) -> set[str]:
    """The tensors that hold experts, one each or all of a layer together."""
    config = checkpoint.config
    prefixes = {
        checkpoint.stored_prefix(part, layer)
        for layer in range(config.num_layers)
        for part in block_shapes(config, layer)
        if split_expert(part)[1] is not None
    }
    return {name for name in checkpoint.entries if name.rpartition(".")[0] in prefixes}


def active_share(config: ModelConfig, batch: int = 1) -> float:
    """How much of the experts a step of so many tokens reads, each choosing as if at random."""
    if config.moe is None:
        return 1.0
    return 1 - (1 - config.moe.top_k / config.moe.num_experts) ** batch


def cache_bytes(config: ModelConfig, slots: float) -> float:
    """Bytes of keys and values of `slots` tokens, in every layer."""
    width = config.head_dim + 4 if config.kv_cache == "int8" else 4 * config.head_dim
    return slots * config.num_layers * 2 * config.num_kv_heads * width


def weights_per_token(config: ModelConfig) -> int:
    """Weights that each prompt token is multiplied by; the head takes part for the last only."""
    total, chosen = 0, active_share(config)
    for layer in range(config.num_layers):
        for part, (shape, _) in block_shapes(config, layer).items():
            share = 1.0 if split_expert(part)[1] is None else chosen
            total += round(math.prod(shape) * share)
    return total
