"""AWQ: scale the channels that the activations make important, so that rounding spares them.

Lin et al. 2023, arXiv 2306.00978. For each place where a scale can move (model/folds.py), in the
order of execution, with x_j = mean |x_j| over tokens and W the readers' weights:

    s_j = x_j^r / (w_j^(1-r) + 1e-4)    r = 0, 1/20 .. 19/20, w_j = mean |W_j| / max |W_group|
    s  /= sqrt(max s * min s)
    W'  = Q(W diag(s)),  source / s     keep the s of least error, or s = 1    (equation 4)

The error is the squared error of the block's output, of the attention's alone for q, k, v and o, of
an expert's own for its down; the readers are rounded to nearest under their schemes, activations
too (not those of experts), and everything else is in float. The paper and its code, llm-awq, have
s_j = x_j^r (equation 5); w_j is AutoAWQ's. With it the error of blocks rounded afterwards is 9 %
less where the model has outlier channels, and about equal elsewhere (docs/methods.md).

Then the range of each group is clipped, except in q and k:

    w <- clip(w, -c a, c a)     a = max |w| of the group, c = 1, 0.95 .. 0.55
    error(c) = sum over tokens of ((w - Q(clip(w))) x)^2 = d H dt,   H = sum x xt of the group

The original sums over 512 tokens; H has all tokens of the search. Clipped weights are what the
next method rounds. INT8 weights are scaled but not clipped.

Where no fold leads to a linear (o behind clipped values, down behind a GELU, post-norms), its
weights are clipped only: a linear has no scale for its input at run time, and the original's
ScaledActivation would need one. A mean |x_j| of 0 gives s_j = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from planish.reference.grids import to_groups
from planish.reference.linear import Linear, float_weight
from planish.reference.model.folds import Fold, block_folds
from planish.reference.model.weights import Block, Mlp, block_linears, replace_modules, split_expert
from planish.reference.quantize.fold import apply_fold, find_statistic
from planish.reference.quantize.grid import grid_codes, grid_parameters, grid_values
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.observe import (
    ABSMAX,
    MOMENTS,
    Observer,
    Statistics,
    second_moments,
    spread,
)
from planish.reference.scheme import Scheme

RATIOS = tuple(k / 20 for k in range(20))
CLIPS = tuple(1 - k / 20 for k in range(10))
TOKENS = 4096  # of the samples that both searches run, evenly spaced among all
FLOOR = np.float32(1e-4)
UNCLIPPED = ("q", "k")  # a clipped query or key moves every score of its head

ScaleErrors = Callable[[BlockJob, Block, Fold, Sequence[np.ndarray]], Sequence[float]]
WeightErrors = Callable[
    [np.ndarray, Scheme, str, np.ndarray, Sequence[np.ndarray]], Sequence[float]
]
ClipWeight = Callable[[np.ndarray, Scheme, str, np.ndarray], np.ndarray]


def absolute_sum(x: Any) -> Any:
    """sum over tokens of |x_j|: [T, K] -> [K]."""
    return abs(x).sum(axis=0)


ABSOLUTE_SUM = Observer(measure=absolute_sum, merge=np.add)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What AWQ computes most: the errors of candidates for a fold, or for one weight; clipping."""

    scale_errors: ScaleErrors
    weight_errors: WeightErrors
    clip_weight: ClipWeight


def quantize_block(job: BlockJob, block: Block) -> Block:
    """Scale every fold of a float block and clip its INT4 weights; another method rounds."""
    return search_block(job, block, NUMPY_SEARCH)


def search_block(job: BlockJob, block: Block, search: Search) -> Block:
    """AWQ with its searches as an argument; the fast step has jitted ones."""
    note_unscaled(job, block)
    job = with_few_samples(job)
    sums, _ = job.runner.observe(job.config, block, job.float_inputs, job.names, ABSOLUTE_SUM)
    moments = observe_experts(job, block)
    for fold in block_folds(job.config, block):
        statistic = find_statistic(sums, fold)
        if statistic is None or not rounded(job, fold):
            continue
        candidates = candidate_scales(job, block, fold, statistic)
        if fold.linears[0] in moments:
            found = search.weight_errors(*expert_down(job, block, fold, moments, candidates))
        else:
            found = search.scale_errors(*inspected(job, block, fold), fold, candidates)
        errors = np.where(np.isfinite(found), found, np.inf)
        block = apply_fold(block, fold, candidates[int(errors.argmin())])
    return clip_block(job, block, search.clip_weight)


def note_unscaled(job: BlockJob, block: Block) -> None:
    """Report, for the first block, the linears that no fold leads to."""
    folded = {part for fold in block_folds(job.config, block) for part in fold.linears}
    schemed = {part for part, scheme in job.schemes.items() if scheme}
    alone = {split_expert(part)[0] for part in schemed - folded}
    if alone and job.layer == 0:
        names = ", ".join(sorted(alone))
        job.note(f"awq cannot scale the inputs of {names}: their weights are clipped only")


def with_few_samples(job: BlockJob) -> BlockJob:
    """The job with samples of at most TOKENS tokens, evenly spaced, or with one."""
    longest = max(map(len, job.float_inputs), default=1)
    some = spread(len(job.float_inputs), max(1, TOKENS // longest))
    inputs, targets = ([states[i] for i in some] for states in (job.float_inputs, job.targets))
    return replace(job, float_inputs=inputs, targets=targets)


def rounded(job: BlockJob, fold: Fold) -> list[str]:
    """The readers of a fold that have a scheme; the others, such as a router, stay in float."""
    return [part for part in fold.linears if job.schemes.get(part) is not None]


def observe_experts(job: BlockJob, block: Block) -> Statistics:
    """sum x xt [F, F] at each expert's down that has a scheme and that some token selected."""
    downs = {part for part in job.schemes if split_expert(part)[0] == "experts.down"}
    downs = {part for part in downs if job.schemes[part] is not None}
    if not downs:
        return {}
    moments, _ = job.runner.observe(
        job.config, block, job.float_inputs, job.names, group_moments(-1), parts=downs
    )
    return moments


def expert_down(
    job: BlockJob, block: Block, fold: Fold, moments: Statistics, candidates: Sequence[np.ndarray]
) -> tuple[Any, ...]:
    """What the errors of an expert's down need: only its own output is judged."""
    (part,) = fold.linears
    w = float_weight(block_linears(block)[part])
    return w, job.schemes[part], job.rule, moments[part], candidates


def inspected(job: BlockJob, block: Block, fold: Fold) -> tuple[BlockJob, Block]:
    """The job and the block whose output error is a fold's: without the MLP for attention's.

    So q, k, v and o are judged by the attention's output, as in the original. In a parallel block,
    or one that normalizes the sum, by the whole block's.
    """
    attention = all(part in ("q", "k", "v", "o") for part in fold.linears)
    if not attention or job.config.parallel or job.config.norm_placement != "pre":
        return job, block
    width = len(float_weight(block.o))
    nothing = (Linear(np.zeros(shape, np.float32)) for shape in ((1, width), (width, 1)))
    block = replace(block, mlp=Mlp(None, *nothing))
    targets = job.runner.run(job.config, block, job.float_inputs)
    return replace(job, targets=targets), block


def candidate_scales(job: BlockJob, block: Block, fold: Fold, sums: np.ndarray) -> list[np.ndarray]:
    """s [channels of the source]: 1, and one for each ratio.

    Query heads that read one channel of v share its s; x_j and w_j are their means. x is divided
    by its mean, so that the floor of s does not depend on the unit of the activations.
    """
    x = fold.by_source(sums).mean(axis=1)
    x = x / max(x.mean(), np.finfo(np.float32).tiny)
    w = fold.by_source(weight_magnitude(job, block, fold)).mean(axis=1)
    scales = [np.maximum(x**r / (w ** (1 - r) + FLOOR), FLOOR) for r in RATIOS]
    return [np.ones_like(x), *(normalize_scale(s, x) for s in scales)]


def normalize_scale(s: np.ndarray, x: np.ndarray) -> np.ndarray:
    """s / sqrt(max s * min s) over the live channels; 1 for a dead one (x_j = 0)."""
    live = s[x > 0]
    if not live.size:
        return np.ones_like(s, np.float32)
    middle = np.sqrt(live.max()) * np.sqrt(live.min())
    return np.where(x > 0, s / middle, 1).astype(np.float32)


def weight_magnitude(job: BlockJob, block: Block, fold: Fold) -> np.ndarray:
    """w_j [K]: mean over the outputs of all readers of |W_j| / (max |W| of its group)."""
    linears = block_linears(block)
    shares = []
    for part in rounded(job, fold):
        w, scheme = np.abs(float_weight(linears[part])), job.schemes[part]
        groups = to_groups(w, scheme.group_size if scheme else -1)  # [N, G, g]
        largest = np.maximum(groups.max(axis=2, keepdims=True), np.finfo(np.float32).tiny)
        shares.append((groups / largest).reshape(len(w), -1)[:, : w.shape[1]])
    mean: np.ndarray = np.concatenate(shares).mean(axis=0)
    return mean


def candidate_errors(
    job: BlockJob, block: Block, fold: Fold, candidates: Sequence[np.ndarray]
) -> list[float]:
    """Squared error of the block's outputs with the readers scaled and rounded, by candidate."""
    absmax = input_absmax(job, block, fold)
    errors = []
    for s in candidates:
        candidate = round_readers(job, apply_fold(block, fold, s), fold, s, absmax)
        outputs = job.runner.run(job.config, candidate, job.float_inputs)
        with np.errstate(all="ignore"):
            pairs = zip(outputs, job.targets, strict=True)
            errors.append(sum(float(np.square(y - right).sum()) for y, right in pairs))
    return errors


def weight_errors(
    w: np.ndarray,
    scheme: Scheme,
    rule: str,
    moments: np.ndarray,
    candidates: Sequence[np.ndarray],
) -> list[float]:
    """sum of d H dt over the rows d of W - Q(W s) / s, by candidate s [K]; moments H [K, K]."""
    errors = []
    for s in candidates:
        wrong = w - on_grid(w * s, scheme, rule) / s
        errors.append(float(((wrong @ moments) * wrong).sum()))
    return errors


def input_absmax(job: BlockJob, block: Block, fold: Fold) -> np.ndarray | None:
    """The absmax [K] of the readers' input, if one of them has static activations."""
    schemes = [job.schemes[part] for part in rounded(job, fold)]
    if not any(scheme and scheme.activation == "static" for scheme in schemes):
        return None
    found, _ = job.runner.observe(
        job.config, block, job.float_inputs, job.names, ABSMAX, parts=fold.linears
    )
    return find_statistic(found, fold)


def round_readers(
    job: BlockJob, block: Block, fold: Fold, s: np.ndarray, absmax: np.ndarray | None
) -> Block:
    """A block scaled by s with the readers of one fold rounded to nearest.

    Codes where the input is quantized, too; else, and in experts, what the codes stand for, because
    the runners take experts with codes in all of their linears or in none.
    """
    linears, wide = block_linears(block), fold.by_input(s)
    seen = None if absmax is None else absmax / wide
    changed = {}
    for part in rounded(job, fold):
        layer, scheme, name = linears[part], job.schemes[part], job.name(part)
        if scheme is None:
            continue
        if scheme.activation == "float" or split_expert(part)[1] is not None:
            values = on_grid(float_weight(layer), scheme, job.rule, name)
            changed[part] = replace(layer, weight=values)
        else:
            changed[part] = quantize_linear(layer, scheme, rule=job.rule, absmax=seen, name=name)
    return replace_modules(block, changed)


def clip_block(job: BlockJob, block: Block, clip_weight: ClipWeight) -> Block:
    """Clip the groups of every INT4 weight except q and k that some token reached."""
    linears, changed = block_linears(block), {}
    schemes = {p: s for p, s in job.schemes.items() if s and s.bits == 4 and p not in UNCLIPPED}
    for size in sorted({scheme.group_size for scheme in schemes.values()}):
        parts = {part for part, scheme in schemes.items() if scheme.group_size == size}
        moments, _ = job.runner.observe(
            job.config, block, job.float_inputs, job.names, group_moments(size), parts=parts
        )
        for part, found in moments.items():
            layer, scheme = linears[part], schemes[part]
            w = float_weight(layer)
            blocks = group_blocks(found, w.shape[1], size)
            changed[part] = replace(layer, weight=clip_weight(w, scheme, job.rule, blocks))
    return replace_modules(block, changed)


@lru_cache
def group_moments(size: int) -> Observer:
    """sum x xt of each group, [G, g, g]; of all inputs, [K, K], if groups do not divide K."""

    if size == -1:
        return MOMENTS

    def measure(x: Any) -> Any:
        if x.shape[1] % size:
            return second_moments(x)
        groups = x.reshape(x.shape[0], -1, size)
        return groups.transpose(1, 2, 0) @ groups.transpose(1, 0, 2)

    return Observer(measure=measure, merge=np.add)


def group_blocks(moments: np.ndarray, cols: int, size: int) -> np.ndarray:
    """What group_moments found as [G, g, g]; the last group is padded with zeros."""
    if moments.ndim == 3:
        return moments
    size = cols if size == -1 else size
    starts = range(0, cols, size)
    blocks = np.zeros((len(starts), size, size), np.float32)
    for block, start in zip(blocks, starts, strict=True):
        part = moments[start : start + size, start : start + size]
        block[: len(part), : len(part)] = part
    return blocks


def clip_groups(w: np.ndarray, scheme: Scheme, rule: str, moments: np.ndarray) -> np.ndarray:
    """w [N, K] with each group clipped at the share of its absmax that has the least error.

    moments [G, g, g]: sum of x xt of each group's inputs.
    """
    groups = to_groups(w, scheme.group_size)  # [N, G, g]
    absmax = np.abs(groups).max(axis=2, keepdims=True)
    best, least = w, np.full(groups.shape[:2], np.inf, np.float32)
    for ratio in CLIPS:
        bound = np.float32(ratio) * absmax
        clipped = np.clip(groups, -bound, bound).reshape(len(w), -1)[:, : w.shape[1]]
        wrong = to_groups(w - on_grid(clipped, scheme, rule), scheme.group_size)
        errors = quadratic_forms(wrong, moments)  # [N, G]
        better = np.repeat(errors < least, groups.shape[2], axis=1)[:, : w.shape[1]]
        best, least = np.where(better, clipped, best), np.minimum(errors, least)
    return best


def on_grid(w: np.ndarray, scheme: Scheme, rule: str, name: str = "w") -> np.ndarray:
    """w [N, K] rounded to nearest under its scheme."""
    scale, zero = grid_parameters(w, scheme, rule, name)
    return grid_values(grid_codes(w, scale, zero, scheme), scale, zero, scheme)


def quadratic_forms(d: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """d H dt of each row and group: d [N, G, g], H [G, g, g] -> [N, G]."""
    by_group = d.transpose(1, 0, 2)  # [G, N, g]
    found: np.ndarray = ((by_group @ moments) * by_group).sum(axis=2).T
    return found


NUMPY_SEARCH = Search(
    scale_errors=candidate_errors, weight_errors=weight_errors, clip_weight=clip_groups
)
