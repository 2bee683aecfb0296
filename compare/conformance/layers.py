"""Level 2: every module of every block, each fed with what the reference feeds it.

So errors cannot add up, and the module that fails is the one that is wrong. In the order of
execution (trace.py says where the norms are):

    norms   q k v   attention   o   norms   gate up   mlp   down   norms   the whole block

where `attention` is all between the norm and the input of `o` (projections, norms of queries and
keys, rotary, cache, mask, softmax) and `mlp` all between its norm and the input of `down`; for a
mixture of experts see moe.py. Before the blocks comes `embed`, after them `unembed`.

Tolerances. Linears: the bounds of tolerances.py. Other modules: 1e-5 of the output's largest
magnitude, since exponentials, rotations and reductions differ by ulps from library to library;
after a softmax 4e-5, since a score of magnitude s has an error of a few s * eps, which the
exponential turns into a relative error of the weight (seen: 0.85e-5, where scores reach 50).

Where an output is quantized next, its codes may differ by one where x / scale is within 1e-4 of a
tie, never by two. Two things widen that. Where groups have scales, the float error is still
that of the whole row, so 1e-4 is meant in units of the row's scale. And after a softmax it is 2e-3,
for the reason above (seen: errors of 6e-4 of a scale).

A flipped code moves everything after it, so a whole block with INT8 activations (or an INT8
cache, kv_cache.py) has no sharp bound: it may be off by 10 % of its largest magnitude at its worst
element and by 0.1 % in the mean. That is enough for what is left to check there, how the modules
are put together.

Native kernels compute several modules in one call. Each is made visible nevertheless, and what the
call does after it must be equal bit for bit (fused_calls.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planish.compare.conformance.block_case import BlockCase
from planish.compare.conformance.check import Check, check
from planish.compare.conformance.fused_calls import check_outputs, identity, normalized_rows
from planish.compare.conformance.kv_cache import attention_over, check_written
from planish.compare.conformance.module_checks import check_module, limit
from planish.compare.conformance.moe import check_mixture
from planish.compare.conformance.ops import Op, check_output
from planish.compare.conformance.routing import block_margin, legal_choices, mixtures, nearest
from planish.compare.conformance.trace import NormPlace, Seen, block_output, norm_places
from planish.compare.subject import Modules
from planish.reference import linear as reference_linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Experts, Mlp, Weights

BLOCK_TOLERANCE = 4e-5  # for a whole block in floats: its modules in sequence
QUANTIZED_BLOCK_TOLERANCE = 0.1  # where codes may flip inside the block
QUANTIZED_BLOCK_MEAN = 1e-3


def check_block(case: BlockCase) -> Iterator[Check]:
    """All modules of one block in the order of execution, then the block."""
    first, second, third = norm_places(case.config, case.block, case.seen)
    for norm in first:
        yield from check_norm(case, norm)
    for part in ("q", "k", "v"):
        yield check_rows(case, part)
    yield from check_attention(case)
    yield check_rows(case, "o")
    for norm in second:
        yield from check_norm(case, norm)
    if isinstance(case.block.mlp, Experts):
        share = BLOCK_TOLERANCE if case.in_floats else QUANTIZED_BLOCK_TOLERANCE
        yield from check_mixture(case, share)
    else:
        yield from check_mlp(case, case.block.mlp)
    for norm in third:
        yield from check_norm(case, norm)
    yield from check_whole(case)


def check_norm(case: BlockCase, place: NormPlace) -> Iterator[Check]:
    """One norm, and the codes of the linears that read it; natively these linears too."""
    modules, part, given = case.modules, place.name, place.given
    norm, readers = getattr(case.block, part), case.linears(place.readers)
    alone = not readers or case.config.norm_placement == "post"
    if alone:
        found = modules.normalize(norm, given)
    else:
        found = normalized_rows(modules, norm, readers, given)
    both = {"expected": place.expected, "found": found}
    yield from check_module(case.layer, part, **both, readers=readers, codes=case.codes)
    linears = list(readers.values())
    if not alone and modules.fuses(linears) and np.isfinite(found).all():
        outputs = modules.project(norm, linears, given)
        for (name, linear), y in zip(readers.items(), outputs, strict=True):
            yield check_outputs(case.layer, f"{name} after its norm", linear, found, y)


def check_rows(case: BlockCase, part: str) -> Check:
    """One linear on every row that the reference gives it, as the model calls it."""
    linear, x, modules = case.linear(part), case.seen[part], case.modules
    if part in ("o", "down"):
        found = modules.linear(x, linear)
    else:
        found = modules.project(None, [linear], x)[0]
    op = Op(layer=case.layer, part=part, linear=linear, level=2)
    return check_output(op, "", x, found, modules.fuses([linear]))


def check_attention(case: BlockCase) -> Iterator[Check]:
    """All between the norm and `o`, over an empty cache; natively `o` and the residual too."""
    config, layer, block, x = case.config, case.layer, case.block, case.seen["q"]
    through = replace(block, o=identity(block.o.weight.shape[1]))
    mixed, past = case.modules.attend(config, through, x)
    expected = case.seen["o"]
    if config.kv_cache == "int8":
        yield from check_written(config, layer, block, x, past)
        expected = attention_over(config, block, x, past)
    both = {"expected": expected, "found": mixed}
    yield from check_module(layer, "attention", **both, readers={"o": block.o}, codes=case.codes)
    if case.modules.fuses([block.o]) and np.isfinite(mixed).all():
        found, _ = case.modules.attend(config, block, x, case.seen["x"])
        part = "o and the residual after attention"
        yield check_outputs(layer, part, block.o, mixed, found, case.seen["x"])


def check_mlp(case: BlockCase, mlp: Mlp) -> Iterator[Check]:
    """Its linears, and all between its norm and `down`; natively `down` and the residual too."""
    for part in ("up",) if mlp.gate is None else ("gate", "up"):
        yield check_rows(case, part)
    config, layer, down, x = case.config, case.layer, mlp.down, case.seen["n"]
    native = case.modules.fuses([down])
    through = replace(mlp, down=identity(down.weight.shape[1], native))
    inner = case.modules.mlp(config, through, x)
    both = {"expected": case.seen["down"], "found": inner}
    yield from check_module(layer, "mlp", **both, readers={"down": down}, codes=case.codes)
    if native and np.isfinite(inner).all():
        found = case.modules.mlp(config, mlp, x, case.seen["x"])
        part = "down and the residual after the mlp"
        yield check_outputs(layer, part, down, inner, found, case.seen["x"])
    yield check_rows(case, "down")


def check_whole(case: BlockCase) -> Iterator[Check]:
    """The block as the model runs it: that its modules are put together as they should be."""
    expected, layer = case.seen["out"], case.layer
    found = case.modules.block(case.config, case.block, case.seen["x"])
    expected = nearest(expected, found, case.options)
    yield from compare_outputs(layer, "block", expected, found, case.in_floats)


def compare_outputs(
    layer: int | None, part: str, expected: np.ndarray, found: np.ndarray, in_floats: bool
) -> Iterator[Check]:
    """The output of a whole block, or of a head with INT8 activations."""
    if in_floats:
        yield check(2, layer, part, expected, found, limit(expected, BLOCK_TOLERANCE))
        return
    yield check(2, layer, part, expected, found, limit(expected, QUANTIZED_BLOCK_TOLERANCE))
    mean = np.abs(found.astype(np.float64) - expected).mean(keepdims=True)
    bound = limit(expected, QUANTIZED_BLOCK_MEAN)
    yield check(2, layer, f"{part}, mean error", np.zeros((1, 1)), mean, bound)


def block_options(config: ModelConfig, block: Block, seen: Seen) -> dict[int, np.ndarray]:
    """The block's outputs in the rows whose experts may be chosen in several ways."""
    if not isinstance(block.mlp, Experts):
        return {}
    scores = reference_linear.linear(seen["n"], block.mlp.router)
    choices = legal_choices(config, scores, block_margin(config, block, seen))
    mixed = mixtures(config, block.mlp, seen["n"], choices)
    return {
        row: block_output(config, block, seen, np.full(len(each), row), each)
        for row, each in mixed.items()
    }


def check_ends(
    modules: Modules,
    config: ModelConfig,
    weights: Weights,
    tokens: np.ndarray,
    last: np.ndarray,
    logits: np.ndarray,
) -> Iterator[Check]:
    """Embeddings of tokens [T], and logits of the last hidden states [T, D]."""
    expected = reference_transformer.embed(config, weights, tokens, np.arange(len(tokens)))
    found = modules.embed(config, weights, tokens)
    yield check(2, None, "embed", expected, found, limit(expected))
    found = modules.unembed(config, weights, last)
    if weights.head.activation == "float":
        yield check(2, None, "unembed", logits, found, limit(logits))
    else:  # a code that flips at a tie moves logits, as it moves a block's outputs
        yield from compare_outputs(None, "unembed", logits, found, in_floats=False)
