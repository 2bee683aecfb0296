"""All three levels in one run, block by block along the reference's hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planish.compare.conformance.attention import check_slot_attention
from planish.compare.conformance.block_case import BlockCase
from planish.compare.conformance.check import Check, check
from planish.compare.conformance.kernels import check_kernels
from planish.compare.conformance.layers import (
    check_block,
    check_ends,
    compare_outputs,
    compute_legal_outputs,
)
from planish.compare.conformance.module_checks import share_of_largest
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
    ReferenceRun,
    Tolerances,
    measure_tolerances,
)
from planish.compare.conformance.routing import take_nearest
from planish.compare.conformance.trace import (
    Seen,
    collect_activations,
    select_linears,
    trace_block,
)
from planish.compare.conformance.transformer import ModelCase, check_model
from planish.compare.conformance.verdict import Report
from planish.compare.subject import Subject
from planish.reference import linear as reference_linear
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK, KVCache, Past
from planish.reference.model.weights import Block, Weights
from planish.reference.progress import Progress, no_progress
from planish.reference.text.generate import Stop, check_fits

PROMPT_LENGTH = 600
LEVELS = (1, 2, 3)


def draw_tokens(vocab_size: int, length: int) -> list[int]:
    """Random token ids from a fixed seed: the default prompt."""
    ids: list[int] = np.random.default_rng(0).integers(0, vocab_size, length).tolist()
    return ids


def run(
    checkpoint: Checkpoint,
    prompt_tokens: Sequence[int] | None = None,
    progress: Progress = no_progress,
    levels: Sequence[int] = LEVELS,
    native: bool = False,
    subject: Subject | None = None,
) -> Report:
    """Compare a subject with the reference on a checkpoint and a prompt.

    subject: planish's engine by default. native: with its kernels instead of the portable form;
    level 1 on every loaded instruction set, levels 2 and 3 on the first. levels: 1 ops, 2 layers,
    3 the whole model; those that the subject cannot answer are skipped.

    The prompt is cut to the model's positions, or to 600 tokens, which is more than a prefill
    chunk. The default prompt is random, from a fixed seed. Raises PromptError for an empty prompt
    or a token outside the vocabulary.
    """
    tokens = choose_prompt(checkpoint.config, prompt_tokens)
    judged = subject or open_engine(checkpoint, native)
    lazy = load_weights(checkpoint)
    weights = replace(lazy, blocks=list(lazy.blocks))
    walk = Walk(config=checkpoint.config, weights=weights, subject=judged, levels=tuple(levels))
    checks, reference_run = walk.check_blocks(tokens, progress)
    figures = None
    if 3 in levels:
        whole, figures = check_model(make_model_case(walk, reference_run), reference_run)
        checks += whole
    return Report(
        name=str(checkpoint.path),
        checks=tuple(checks),
        subject=judged.name,
        form=judged.form,
        kernels=judged.kernels,
        figures=figures,
    )


def open_engine(checkpoint: Checkpoint, native: bool) -> Subject:
    """planish's engine; jax is imported only when it is judged."""
    from planish.compare.conformance.fast_engine import fast_engine

    return fast_engine(checkpoint, native)


def choose_prompt(config: ModelConfig, tokens: Sequence[int] | None) -> list[int]:
    """The given tokens, cut to length, or random ones."""
    length = min(PROMPT_LENGTH, config.max_positions)
    found = draw_tokens(config.vocab_size, length) if tokens is None else list(tokens)[:length]
    check_fits(config, [found], Stop(0), config.max_positions)
    return found


def make_model_case(walk: Walk, reference_run: ReferenceRun) -> ModelCase:
    """Level 3, with the tolerances that the model's quantization and routers require."""
    kinds = set().union(*(collect_activations(block) for block in walk.weights.blocks))
    return ModelCase(
        config=walk.config,
        weights=walk.weights,
        subject=walk.subject,
        tolerances=choose_tolerances(walk, reference_run, kinds == {"float"}),
        chunk_scales="per_tensor" in kinds,
    )


def choose_tolerances(walk: Walk, reference_run: ReferenceRun, in_floats: bool) -> Tolerances:
    """Fixed tolerances where no code can flip, measured ones where one can."""
    floats = in_floats and walk.config.kv_cache == "float32"
    if floats and not reference_run.router_ties:
        return IN_FLOATS
    least = IN_FLOATS if floats else LEAST_CACHED if in_floats else LEAST
    return measure_tolerances(walk.config, walk.weights, reference_run, least)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Levels 1 and 2, block after block along the reference's hidden states of the first chunk.

    The cache and logits that the reference computes along the way are used for level 3.
    """

    config: ModelConfig
    weights: Weights
    subject: Subject
    levels: tuple[int, ...]

    def check_blocks(
        self, tokens: list[int], progress: Progress
    ) -> tuple[list[Check], ReferenceRun]:
        """Every check of levels 1 and 2, and the reference's run of the whole prompt."""
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
        reference_run = self.finish_run(tokens, logits, KVCache(keys, values))
        return checks, replace(reference_run, router_ties=sum(map(len, options)))

    def check_without_model(self) -> Iterator[Check]:
        """Level 1 without a model: random linears and caches, or integer products."""
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
        """The block's outputs, by row, where several choices of experts are legal."""
        return compute_legal_outputs(self.config, block, seen) if {2, 3} & {*self.levels} else {}

    def check_ops(self, layer: int, block: Block, seen: Seen) -> Iterator[Check]:
        """Level 1: each linear of a block on the rows that the reference reads there."""
        ops, count = self.subject.ops, len(seen["x"])
        if 1 not in self.levels or ops is None:
            return
        for part, linear in select_linears(block, seen).items():
            rows = np.resize(
                seen[part], (count, seen[part].shape[1])
            )  # repeated, as few rows reach an expert
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
        """Level 2, coarsely: the embeddings, and each block given the reference's hidden states."""
        if 2 not in self.levels or self.subject.blocks is None:
            return
        embedded, *outputs = self.subject.blocks.blocks(tokens.tolist(), hidden[:-1])
        yield check(2, None, "embed", hidden[0], embedded, share_of_largest(hidden[0]))
        pairs = zip(self.weights.blocks, hidden[1:], outputs, strict=True)
        for layer, (block, expected, found) in enumerate(pairs):
            expected = take_nearest(expected, found, options[layer])
            floats = collect_activations(block) == {"float"}
            yield from compare_outputs(layer, "block", expected, found, floats)

    def finish_run(self, tokens: list[int], logits: np.ndarray, cache: KVCache) -> ReferenceRun:
        """Add the prompt's remaining tokens, if it is longer than a chunk."""
        if len(tokens) > PREFILL_CHUNK:
            rest = np.asarray(tokens[PREFILL_CHUNK:])
            x, _ = reference_transformer.extend(self.config, self.weights, rest, cache)
            more = reference_transformer.unembed(self.config, self.weights, x)
            logits = np.concatenate([logits, more])
        return ReferenceRun(tokens=tokens, logits=logits, cache=cache)
