"""AWQ: the candidates, the clipping, and that scaling leaves the float model as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.linear import Linear
from planish.reference.model.folds import Fold, block_folds
from planish.reference.model.weights import block_linears, block_norms
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.awq import (
    CLIPS,
    NUMPY_SEARCH,
    RATIOS,
    candidate_scales,
    clip_groups,
    group_blocks,
    group_moments,
    normalize_scale,
    on_grid,
    quantize_block,
    search_block,
    with_few_samples,
)
from planish.reference.quantize.methods.rtn import quantize_block as round_block
from planish.reference.quantize.observe import embed_samples, observe_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runner import NUMPY_RUNNER
from planish.reference.quantize.search import output_error
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import by_recipe, in_memory, same_schemes

GOLDEN = Path(__file__).parents[3] / "golden"
NAMES = (
    "gpt_neox-parallel",
    "falcon-7b-form-biases",
    "opt-350m-form",
    "mpt-clipped-scaled-six-heads",
    "gemma2-caps",
    "olmo2-grouped",
    "qwen3-norms",
    "mixtral-two-of-four",
    "qwen3_moe-some-layers",
)
F32 = np.float32


def array(*values):
    return np.array(values, F32)


def first_job(checkpoint, weights, scheme, notes=None, **changes):
    """A job for the first block, on three samples of random tokens."""
    rng = np.random.default_rng(3)
    vocabulary = checkpoint.config.vocab_size
    config, tokens = checkpoint.config, [rng.integers(0, vocabulary, 24) for _ in range(3)]
    hidden, block = embed_samples(config, weights, tokens), weights.blocks[0]
    _, targets = observe_block(config, block, hidden)
    given = {"inputs": hidden, "float_inputs": hidden, "targets": targets}
    noted = {"note": (notes if notes is not None else []).append}
    schemes = same_schemes(block, scheme)
    return BlockJob(config=config, schemes=schemes, **given, **noted, **changes), block


def unclipped(w, *_):
    return w


def test_a_scale_is_divided_by_the_middle_of_its_range_and_dead_channels_keep_one():
    assert normalize_scale(array(16, 4, 1), array(9, 9, 9)).tolist() == [4, 1, 0.25]
    assert normalize_scale(array(16, 1e-4, 1), array(9, 0, 9)).tolist() == [4, 1, 0.25]
    assert normalize_scale(array(1e-4, 1e-4), array(0, 0)).tolist() == [1, 1]


def test_candidates_are_one_and_powers_of_inputs_and_weights(loaded):
    checkpoint, weights = loaded["llama"]
    job, block = first_job(checkpoint, weights, int4(32))
    even = Linear(np.ones((4, 32), F32))
    block = replace(block, q=even, k=even, v=even)  # w_j = 1
    fold = block_folds(checkpoint.config, block)[0]
    x = np.arange(1, 33, dtype=F32)
    found = candidate_scales(job, block, fold, x)
    assert len(found) == 1 + len(RATIOS)
    assert found[0].tolist() == [1] * 32  # as without AWQ
    assert found[11] == pytest.approx(np.sqrt(x) / 32**0.25, rel=1e-3)  # r = 1/2
    halves = Linear(np.where(np.arange(32) < 16, F32(1), F32(0.25)) * np.ones((4, 1), F32))
    block = replace(block, q=halves, k=halves, v=halves)
    found = candidate_scales(job, block, fold, np.ones(32, F32))
    assert found[1] == pytest.approx(np.repeat([0.5, 2], 16), rel=1e-3)  # r = 0: 1 / w
    assert found[11] == pytest.approx(np.repeat([2**-0.5, 2**0.5], 16), rel=1e-3)


def test_query_heads_of_a_group_share_the_mean_of_their_inputs():
    fold = Fold("v", ("o",), shared=2, width=3)
    inputs = np.arange(12, dtype=F32)  # two channels' heads of three: 0 1 2 | 3 4 5, ...
    assert fold.by_source(inputs).tolist() == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert fold.by_input(fold.by_source(inputs)[:, 0]).tolist() == [0, 1, 2] * 2 + [6, 7, 8] * 2


@pytest.mark.parametrize("scheme", [int4(32), int4(32, symmetric=False), int4(-1)], ids=str)
@pytest.mark.parametrize("cols", [64, 80])
def test_clipping_takes_the_share_of_least_output_error_of_each_group(scheme, cols):
    rng = np.random.default_rng(cols)
    w, x = rng.standard_t(2, (6, cols)).astype(F32), rng.standard_normal((40, cols)).astype(F32)
    x *= np.exp(rng.standard_normal(cols)).astype(F32)
    size = scheme.group_size
    moments = group_blocks(group_moments(size).measure(x), cols, size)
    found = clip_groups(w, scheme, "signed", moments)
    assert not np.array_equal(found, w)
    for start in range(0, cols, cols if size == -1 else size):
        span = slice(start, start + (cols if size == -1 else size))
        group, inputs, least = w[:, span], x[:, span], np.full(6, np.inf)
        for ratio in CLIPS:
            bound = F32(ratio) * np.abs(group).max(axis=1, keepdims=True)
            wrong = group - on_grid(np.clip(group, -bound, bound), scheme, "signed")
            least = np.minimum(least, np.square(inputs @ wrong.T).sum(axis=0))
        wrong = group - on_grid(found[:, span], scheme, "signed")
        assert np.square(inputs @ wrong.T).sum(axis=0) == pytest.approx(least, rel=1e-4)


@pytest.mark.matrix(9)
@pytest.mark.parametrize("name", NAMES)
def test_scaling_leaves_the_float_block_as_it_was(name):
    checkpoint = open_checkpoint(GOLDEN / name)
    job, block = first_job(checkpoint, load_weights(checkpoint), int4(32))
    scaled = search_block(job, block, replace(NUMPY_SEARCH, clip_weight=unclipped))
    outputs = NUMPY_RUNNER.run(checkpoint.config, scaled, job.float_inputs)
    for y, right in zip(outputs, job.targets, strict=True):
        assert np.abs(y - right).max() <= 1e-5 * np.abs(right).max()
    changed = {
        part
        for part, layer in block_linears(scaled).items()
        if not np.array_equal(layer.weight, block_linears(block)[part].weight)
    }
    folds = block_folds(checkpoint.config, block)
    assert bool(changed) == bool(folds)
    assert changed <= {part for fold in folds for part in (fold.source, *fold.linears)}


def test_what_cannot_be_scaled_is_noted_once(loaded):
    notes = []
    checkpoint, weights = loaded["opt-gelu"]
    job, block = first_job(checkpoint, weights, int4(32), notes)
    quantize_block(job, block)
    quantize_block(replace(job, layer=1), block)
    assert notes == ["awq cannot scale the inputs of down: their weights are clipped only"]


def test_queries_and_keys_are_not_clipped_and_int8_never_is(loaded):
    checkpoint, weights = loaded["llama"]
    job, block = first_job(checkpoint, weights, int4(32))
    job = replace(job, schemes={part: job.schemes[part] for part in ("q", "k", "v")})
    scaled, clipped = (
        search_block(job, block, replace(NUMPY_SEARCH, clip_weight=unclipped)),
        quantize_block(job, block),
    )
    assert np.array_equal(scaled.q.weight, clipped.q.weight)
    assert np.array_equal(scaled.k.weight, clipped.k.weight)
    assert not np.array_equal(scaled.v.weight, clipped.v.weight)
    job = replace(job, schemes=dict.fromkeys(job.schemes, int8()))
    scaled, clipped = (
        search_block(job, block, replace(NUMPY_SEARCH, clip_weight=unclipped)),
        quantize_block(job, block),
    )
    assert np.array_equal(scaled.v.weight, clipped.v.weight)


@pytest.mark.matrix(10)
@pytest.mark.parametrize(
    "changes",
    [
        {"name": "W4A16", "group_size": 32},
        {"name": "W4A16", "group_size": 32, "rule": "minmax"},
        {"name": "W4A8", "group_size": 32},
        {"name": "W8A8"},
        {"name": "O3"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_block_with_outliers_is_no_worse_than_rounded_to_nearest(loaded, name, changes):
    checkpoint, weights = loaded[name]
    block, config = weights.blocks[0], checkpoint.config
    norm, s = block.attention_norm, np.ones(config.hidden_size, F32)
    s[[3, 20]] = 60
    norm = replace(norm, weight=norm.weight * s, bias=None if norm.bias is None else norm.bias * s)
    outlying = {
        part: replace(getattr(block, part), weight=getattr(block, part).weight / s)
        for part in "qkv"
    }
    block = replace(block, attention_norm=norm, **outlying)
    weights = replace(weights, blocks=[block, *weights.blocks[1:]])
    job, block = first_job(checkpoint, weights, int4(32))
    errors = []
    for method in ("rtn", "awq"):
        chosen = recipe(**changes, method=method)
        found = by_recipe(config, block, chosen, job.float_inputs, targets=job.targets)
        outputs = NUMPY_RUNNER.run(config, found, job.float_inputs)
        errors.append(output_error(job.float_inputs, outputs, job.targets))
    assert errors[1] < (0.8 if changes["name"] == "W4A16" else 1) * errors[0]


def test_each_expert_is_scaled_for_itself_and_one_without_tokens_is_not():
    checkpoint = open_checkpoint(GOLDEN / "mixtral-two-of-four")
    job, block = first_job(checkpoint, load_weights(checkpoint), int4(32))
    router, dead = block.mlp.router, [-1e4] * len(block.mlp.experts)
    dead[:2] = 0, 0  # the first two experts of every token
    router = replace(router, weight=0 * router.weight, bias=array(*dead))
    block = replace(block, mlp=replace(block.mlp, router=router))
    search = replace(NUMPY_SEARCH, clip_weight=unclipped)
    after = search_block(job, block, search).mlp.experts
    changed = [
        not np.array_equal(old.down.weight, new.down.weight)
        for old, new in zip(block.mlp.experts, after, strict=True)
    ]
    assert changed == [True, True] + [False] * (len(after) - 2)


def test_the_search_takes_few_samples_spread_over_all(loaded):
    checkpoint, weights = loaded["llama"]
    job, _ = first_job(checkpoint, weights, int4(32))
    hidden = [np.full((512, 1), i, F32) for i in range(32)]
    found = with_few_samples(replace(job, float_inputs=hidden, targets=hidden))
    assert [int(x[0, 0]) for x in found.float_inputs] == [*range(0, 32, 4)]
    assert len(found.targets) == 8
    short = [np.zeros((64, 1), F32)] * 32
    assert len(with_few_samples(replace(job, float_inputs=short, targets=short)).targets) == 32


def test_a_model_runs_through_the_chain(loaded, samples):
    checkpoint, weights = loaded["llama"]
    found = in_memory(checkpoint, weights, recipe("W4A16", method="awq", group_size=32), samples)
    assert all(layer.scheme for layer in block_linears(found.blocks[0]).values())
    before = block_norms(weights.blocks[0])["attention_norm"].weight
    assert not np.array_equal(block_norms(found.blocks[0])["attention_norm"].weight, before)


def test_rtn_of_an_unscaled_block_is_one_of_the_candidates(loaded):
    checkpoint, weights = loaded["llama"]
    job, block = first_job(checkpoint, weights, int4(32))
    tried = []

    def errors(job, block, fold, candidates):
        tried.append(candidates[0].tolist())
        return [1.0] * len(candidates)  # equal: the first one is taken

    found = search_block(
        job, block, replace(NUMPY_SEARCH, scale_errors=errors, clip_weight=unclipped)
    )
    assert all(set(s) == {1} for s in tried) and len(tried) == 4
    for part, layer in block_linears(round_block(job, found)).items():
        expected = block_linears(round_block(job, block))[part].weight
        assert np.array_equal(layer.weight.codes, expected.codes)
