"""The three levels in one run, along the reference's way through the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planish.compare.conformance.attention import check_slot_attention
from planish.compare.conformance.block_case import BlockCase
from planish.compare.conformance.check import Check, check
from planish.compare.conformance.kernels import check_kernels
from planish.compare.conformance.layers import (
    block_options,
    check_block,
    check_ends,
    compare_outputs,
)
from planish.compare.conformance.module_checks import limit
from planish.compare.conformance.ops import (
    Op,
    check_integer_products,
    check_linear_op,
    check_scales,
)
from planish.compare.conformance.perturbation import (
    IN_FLOATS,
    LEAST,
    LEAST_CACHED,
    Tolerances,
    Trace,
    tolerances,
)
from planish.compare.conformance.routing import nearest
from planish.compare.conformance.trace import (
    Past,
    Seen,
    activations,
    judged_linears,
    trace_block,
)
from planish.compare.conformance.transformer import ModelCase, check_model
from planish.compare.conformance.verdict import Report
from planish.compare.subject import Subject
from planish.reference import linear as reference_linear
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK, KVCache
from planish.reference.model.weights import Block, Weights
from planish.reference.progress import Progress, no_progress
from planish.reference.text.generate import Stop, check_fits

PROMPT_LENGTH = 600
LEVELS = (1, 2, 3)


def random_tokens(vocab_size: int, length: int) -> list[int]:
    """The prompt where none is given: drawn with a fixed seed."""
    return np.random.default_rng(0).integers(0, vocab_size, length).tolist()


def run(
    checkpoint: Checkpoint,
    prompt_tokens: Sequence[int] | None = None,
    progress: Progress = no_progress,
    levels: Sequence[int] = LEVELS,
    native: bool = False,
    subject: Subject | None = None,
) -> Report:
    """Compare a subject with the reference on a checkpoint and a prompt.

    The subject is planish's engine unless another one is given; `native`: its kernels instead of
    the portable form; level 1 on every instruction set that is loaded, levels 2 and 3 on the first.
    `levels` to compare: 1 ops, 2 layers, 3 the whole model, those of them that the subject can do.

    The prompt is cut to the model's length, or to 600 tokens: longer than a prefill chunk. Where
    none is given it is drawn with a fixed seed. Raises PromptError for an empty prompt or a token
    outside the vocabulary.
    """
    tokens = prompt_of(checkpoint.config, prompt_tokens)
    judged = subject or planish_engine(checkpoint, native)
    lazy = load_weights(checkpoint)
    weights = replace(lazy, blocks=list(lazy.blocks))
    walk = Walk(config=checkpoint.config, weights=weights, subject=judged, levels=tuple(levels))
    checks, trace = walk.check_blocks(tokens, progress)
    figures = None
    if 3 in levels:
        whole, figures = check_model(model_case(walk, trace), trace)
        checks += whole
    return Report(
        name=str(checkpoint.path),
        checks=tuple(checks),
        subject=judged.name,
        form=judged.form,
        kernels=judged.kernels,
        figures=figures,
    )


def planish_engine(checkpoint: Checkpoint, native: bool) -> Subject:
    """jax is imported only where planish's engine is judged."""
    from planish.compare.conformance.fast_engine import fast_engine

    return fast_engine(checkpoint, native)


def prompt_of(config: ModelConfig, tokens: Sequence[int] | None) -> list[int]:
    """The tokens given, cut; or tokens drawn at random."""
    length = min(PROMPT_LENGTH, config.max_positions)
    found = random_tokens(config.vocab_size, length) if tokens is None else list(tokens)[:length]
    check_fits(config, [found], Stop(0), config.max_positions)
    return found


def model_case(walk: Walk, trace: Trace) -> ModelCase:
    """Level 3, with the tolerances that the model's grids and routers ask for."""
    kinds = set().union(*(activations(block) for block in walk.weights.blocks))
    return ModelCase(
        config=walk.config,
        weights=walk.weights,
        subject=walk.subject,
        tolerances=allowed(walk, trace, kinds == {"float"}),
        together="per_tensor" in kinds,
    )


def allowed(walk: Walk, trace: Trace, in_floats: bool) -> Tolerances:
    """Fixed where nothing can flip, measured where something can."""
    floats = in_floats and walk.config.kv_cache == "float32"
    if floats and not trace.router_ties:
        return IN_FLOATS
    least = IN_FLOATS if floats else LEAST_CACHED if in_floats else LEAST
    return tolerances(walk.config, walk.weights, trace, least)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Levels 1 and 2, block after block along the reference's hidden states of the first chunk.

    What the reference computes on the way, its cache and its logits, serves level 3.
    """

    config: ModelConfig
    weights: Weights
    subject: Subject
    levels: tuple[int, ...]

    def check_blocks(self, tokens: list[int], progress: Progress) -> tuple[list[Check], Trace]:
        """Every check of levels 1 and 2, and the reference's trace of the whole prompt."""
        checks, pasts = [*self.check_without_model()], list[Past]()
        hidden, options = list[np.ndarray](), list[dict[int, np.ndarray]]()
        first = np.asarray(tokens[:PREFILL_CHUNK])
        x = reference_transformer.embed(self.config, self.weights, first, np.arange(len(first)))
        for layer, block in enumerate(progress(self.weights.blocks, "compare blocks")):
            seen, past = trace_block(self.config, block, x)
            options.append(self.options(block, seen))
            checks += self.check_ops(layer, block, seen)
            checks += self.check_modules(layer, block, seen, options[-1])
            pasts.append(past)
            hidden.append(x)
            x = seen["out"]
        checks += [*self.check_outer(x), *self.check_hidden(first, [*hidden, x], options)]
        logits = reference_transformer.unembed(self.config, self.weights, x)
        modules = self.subject.modules
        if 2 in self.levels and modules is not None:
            checks += check_ends(modules, self.config, self.weights, first, x, logits)
        keys, values = zip(*pasts, strict=True)
        trace = self.finish_trace(tokens, logits, KVCache(keys, values))
        return checks, replace(trace, router_ties=sum(map(len, options)))

    def check_without_model(self) -> Iterator[Check]:
        """Level 1 where no model is needed: random linears and caches, or integer products."""
        if 1 not in self.levels:
            return
        codes, ops, slots = self.subject.codes, self.subject.ops, self.subject.slots
        if codes is not None:
            yield check_scales(codes)
            yield from check_integer_products(codes)
        if ops is not None and self.subject.kernels:
            yield from check_kernels(ops)
        if slots is not None:
            yield from check_slot_attention(slots, self.subject.kernels)

    def options(self, block: Block, seen: Seen) -> dict[int, np.ndarray]:
        """The block's outputs in the rows whose experts may be chosen in several ways."""
        return block_options(self.config, block, seen) if {2, 3} & {*self.levels} else {}

    def check_ops(self, layer: int, block: Block, seen: Seen) -> Iterator[Check]:
        """Level 1: each linear of a block on the rows that the reference reads there."""
        ops, count = self.subject.ops, len(seen["x"])
        if 1 not in self.levels or ops is None:
            return
        for part, linear in judged_linears(block, seen).items():
            rows = np.resize(seen[part], (count, seen[part].shape[1]))  # few reach an expert
            op = Op(layer=layer, part=part, linear=linear)
            yield from check_linear_op(op, rows, ops, self.subject.codes)

    def check_modules(
        self, layer: int, block: Block, seen: Seen, options: dict[int, np.ndarray]
    ) -> Iterator[Check]:
        """Level 2: each module of a block."""
        if 2 in self.levels and self.subject.modules is not None:
            case = BlockCase(
                config=self.config,
                layer=layer,
                block=block,
                seen=seen,
                modules=self.subject.modules,
                codes=self.subject.codes,
                options=options,
            )
            yield from check_block(case)

    def check_outer(self, x: np.ndarray) -> Iterator[Check]:
        """Level 1 for the linears outside the blocks; x [T, D] serves as rows for lm_head too."""
        ops = self.subject.ops
        if 1 not in self.levels or ops is None:
            return
        for part in ("project_out", "project_in", "head"):
            linear = getattr(self.weights, part)
            if linear is not None:
                op = Op(layer=None, part=part, linear=linear)
                yield from check_linear_op(op, x, ops, self.subject.codes)
            if linear is not None and part == "project_out":
                x = reference_linear.linear(x, linear)

    def check_hidden(
        self,
        tokens: np.ndarray,
        hidden: list[np.ndarray],
        options: list[dict[int, np.ndarray]],
    ) -> Iterator[Check]:
        """Level 2, coarsely: the embeddings, and each block fed with the reference's states."""
        if 2 not in self.levels or self.subject.blocks is None:
            return
        embedded, *outputs = self.subject.blocks.blocks(tokens.tolist(), hidden[:-1])
        yield check(2, None, "embed", hidden[0], embedded, limit(hidden[0]))
        pairs = zip(self.weights.blocks, hidden[1:], outputs, strict=True)
        for layer, (block, expected, found) in enumerate(pairs):
            expected = nearest(expected, found, options[layer])
            floats = activations(block) == {"float"}
            yield from compare_outputs(layer, "block", expected, found, floats)

    def finish_trace(self, tokens: list[int], logits: np.ndarray, cache: KVCache) -> Trace:
        """The prompt's remaining tokens, if it is longer than a chunk."""
        if len(tokens) > PREFILL_CHUNK:
            rest = np.asarray(tokens[PREFILL_CHUNK:])
            x, _ = reference_transformer.extend(self.config, self.weights, rest, cache)
            more = reference_transformer.unembed(self.config, self.weights, x)
            logits = np.concatenate([logits, more])
        return Trace(tokens=tokens, logits=logits, cache=cache)
