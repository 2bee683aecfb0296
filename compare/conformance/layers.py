"""Level 2: every module of every block, each given the reference's input.

So errors cannot add up, and the module that fails is the wrong one. In the order of execution
(trace.py says where the norms are):

    norms   q k v   attention   o   norms   gate up   mlp   down   norms   the whole block

where `attention` is everything from the norm to the input of `o` (projections, norms of queries and
keys, rotary embedding, cache, mask, softmax) and `mlp` everything from its norm to the input of
`down`; moe.py has mixtures of experts. `embed` comes before the blocks, `unembed` after them.

Tolerances. Linears: those of tolerances.py. Other modules: 1e-5 of the output's largest magnitude,
because exponentials, rotations and reductions differ by ulps between libraries; after a softmax
4e-5, because a score of magnitude s has an error of a few s * eps, which the exponential turns into
a relative error of the attention weight (measured: 0.85e-5, with scores of up to 50).

If an output is quantized next, its codes may differ by one where x / scale is within 1e-4 of a tie,
and never by two. That is wider in two cases. If groups have scales, the float error is still that
of the whole row, so 1e-4 is in units of the row's scale. After a softmax it is 2e-3, for the reason
above (measured: errors of 6e-4 of a scale).

A flipped code changes every value downstream, so a whole block with INT8 activations (or an INT8
cache, kv_cache.py) has no sharp tolerance: 10 % of the largest magnitude for its worst element and
0.1 % for the mean. That suffices for the one thing that remains to be checked there, how the
modules are connected.

A native kernel computes several modules in one call. Each is made visible all the same, and what
the call does after it must be equal bit for bit (fused_calls.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planish.compare.conformance.block_case import BlockCase
from planish.compare.conformance.check import Check, check
from planish.compare.conformance.fused_calls import (
    check_outputs,
    identity_linear,
    read_normalized_rows,
)
from planish.compare.conformance.kv_cache import attend_over, attend_over_codes, check_written
from planish.compare.conformance.module_checks import check_module, check_readers, share_of_largest
from planish.compare.conformance.moe import check_mixture
from planish.compare.conformance.ops import Op, check_output
from planish.compare.conformance.routing import (
    find_legal_choices,
    measure_margin,
    mix_choices,
    take_nearest,
)
from planish.compare.conformance.trace import NormCase, Seen, compose_output, list_norms
from planish.compare.subject import Modules
from planish.reference import linear as reference_linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Experts, Mlp, Weights

BLOCK_TOLERANCE = 4e-5  # for a whole block in floats: several modules in sequence
QUANTIZED_BLOCK_TOLERANCE = 0.1  # where codes may flip inside the block
QUANTIZED_BLOCK_MEAN = 1e-3


def check_block(case: BlockCase) -> Iterator[Check]:
    """All modules of one block in the order of execution, then the block."""
    first, second, third = list_norms(case.config, case.block, case.seen)
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


def check_norm(case: BlockCase, norm_case: NormCase) -> Iterator[Check]:
    """One norm, and the activation codes of its readers; natively these linears too."""
    modules, part, given = case.modules, norm_case.name, norm_case.given
    norm, readers = getattr(case.block, part), case.linears(norm_case.readers)
    separate = not readers or case.config.norm_placement == "post"
    if separate:
        found = modules.normalize(norm, given)
    else:
        found = read_normalized_rows(modules, norm, readers, given)
    both = {"expected": norm_case.expected, "found": found}
    yield from check_module(case.layer, part, **both, readers=readers, codes=case.codes)
    linears = list(readers.values())
    if not separate and modules.fuses(linears) and np.isfinite(found).all():
        outputs = modules.project(norm, linears, given)
        for (name, linear), y in zip(readers.items(), outputs, strict=True):
            yield check_outputs(case.layer, f"{name} after its norm", linear, found, y)


def check_rows(case: BlockCase, part: str) -> Check:
    """One linear on all rows that the reference reads there, called as the model calls it."""
    linear, x, modules = case.linear(part), case.seen[part], case.modules
    if part in ("o", "down"):
        found = modules.linear(x, linear)
    else:
        found = modules.project(None, [linear], x)[0]
    op = Op(layer=case.layer, part=part, linear=linear, level=2)
    return check_output(op, "", x, found, modules.fuses([linear]))


def check_attention(case: BlockCase) -> Iterator[Check]:
    """Everything from the norm to `o`, over an empty cache; natively `o` and the residual too."""
    config, layer, block, x = case.config, case.layer, case.block, case.seen["q"]
    through = replace(block, o=identity_linear(block.o.weight.shape[1]))
    mixed, past = case.modules.attend(config, through, x)
    expected = case.seen["o"]
    if config.kv_cache != "float32":
        yield from check_written(config, layer, block, x, past)
    if config.attention == "int8":
        attended = attend_over_codes(config, block, x, past)
        yield check(2, layer, "attention", attended.expected, mixed, attended.allowed)
        yield from check_readers(layer, "attention", mixed, mixed, {"o": block.o}, case.codes)
    else:
        expected = expected if config.kv_cache == "float32" else attend_over(config, block, x, past)
        both = {"expected": expected, "found": mixed}
        yield from check_module(
            layer, "attention", **both, readers={"o": block.o}, codes=case.codes
        )
    if case.modules.fuses([block.o]) and np.isfinite(mixed).all():
        found, _ = case.modules.attend(config, block, x, case.seen["x"])
        part = "o and the residual after attention"
        yield check_outputs(layer, part, block.o, mixed, found, case.seen["x"])


def check_mlp(case: BlockCase, mlp: Mlp) -> Iterator[Check]:
    """The MLP's linears; everything from its norm to `down`; natively `down` and the residual."""
    for part in ("up",) if mlp.gate is None else ("gate", "up"):
        yield check_rows(case, part)
    config, layer, down, x = case.config, case.layer, mlp.down, case.seen["n"]
    native = case.modules.fuses([down])
    through = replace(mlp, down=identity_linear(down.weight.shape[1], native))
    inner = case.modules.mlp(config, through, x)
    both = {"expected": case.seen["down"], "found": inner}
    yield from check_module(layer, "mlp", **both, readers={"down": down}, codes=case.codes)
    if native and np.isfinite(inner).all():
        found = case.modules.mlp(config, mlp, x, case.seen["x"])
        part = "down and the residual after the mlp"
        yield check_outputs(layer, part, down, inner, found, case.seen["x"])
    yield check_rows(case, "down")


def check_whole(case: BlockCase) -> Iterator[Check]:
    """The block as the model runs it: are its modules connected as they should be?"""
    expected, layer = case.seen["out"], case.layer
    found = case.modules.block(case.config, case.block, case.seen["x"])
    expected = take_nearest(expected, found, case.options)
    yield from compare_outputs(layer, "block", expected, found, case.in_floats)


def compare_outputs(
    layer: int | None, part: str, expected: np.ndarray, found: np.ndarray, in_floats: bool
) -> Iterator[Check]:
    """The output of a whole block, or of an lm_head with INT8 activations."""
    if in_floats:
        yield check(2, layer, part, expected, found, share_of_largest(expected, BLOCK_TOLERANCE))
        return
    yield check(
        2, layer, part, expected, found, share_of_largest(expected, QUANTIZED_BLOCK_TOLERANCE)
    )
    mean = np.abs(found.astype(np.float64) - expected).mean(keepdims=True)
    bound = share_of_largest(expected, QUANTIZED_BLOCK_MEAN)
    yield check(2, layer, f"{part}, mean error", np.zeros((1, 1)), mean, bound)


def compute_legal_outputs(config: ModelConfig, block: Block, seen: Seen) -> dict[int, np.ndarray]:
    """The block's outputs [choices, D], by row, where several choices of experts are legal."""
    if not isinstance(block.mlp, Experts):
        return {}
    scores = reference_linear.linear(seen["n"], block.mlp.router)
    choices = find_legal_choices(config, scores, measure_margin(config, block, seen))
    mixed = mix_choices(config, block.mlp, seen["n"], choices)
    return {
        row: compose_output(config, block, seen, np.full(len(each), row), each)
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
    yield check(2, None, "embed", expected, found, share_of_largest(expected))
    found = modules.unembed(config, weights, last)
    if weights.head.activation == "float":
        yield check(2, None, "unembed", logits, found, share_of_largest(logits))
    else:  # a flipped code moves logits as it moves a block's outputs
        yield from compare_outputs(None, "unembed", logits, found, in_floats=False)
