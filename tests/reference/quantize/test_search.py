"""The search for alpha: the least output error, over samples that are spread over all."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears, replace_modules
from planish.reference.quantize.fold import scale_inputs, scale_norm
from planish.reference.quantize.observe import embed_samples, observe_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runner import NumpyRunner
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.search import output_error, search_alpha, spread
from planish.reference.quantize.smooth import apply_smoothing
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32


def outlier_model(loaded, samples):
    """Block 0 with channels of its first norm raised: best at a high alpha; block 1 as it was."""
    checkpoint, weights = loaded["llama"]
    blocks = list(weights.blocks)
    s = np.ones(32, F32)
    s[[3, 20]] = 1 / 200
    first = blocks[0]
    linears = {p: scale_inputs(getattr(first, p), s) for p in "qkv"}
    blocks[0] = replace(first, attention_norm=scale_norm(first.attention_norm, s), **linears)
    return checkpoint, replace(weights, blocks=blocks)


def test_alpha_search_finds_the_alpha_with_the_least_output_error(loaded, samples):
    checkpoint, weights = outlier_model(loaded, samples)
    config, chosen = checkpoint.config, recipe("W8A8")
    alphas, hidden, table = (0.0, 0.5, 0.9), embed_samples(config, weights, samples), []
    for block in weights.blocks:
        absmax, outputs = observe_block(config, block, hidden)
        candidates = [apply_smoothing(config, block, absmax, chosen, a) for a in alphas]
        found = [NUMPY.runner.run(config, by_recipe(config, c, chosen), hidden) for c in candidates]
        table.append([output_error(hidden, y, outputs) for y in found])
        hidden = outputs
    assert min(table[0]) < table[0][0]  # without smoothing the outliers cost the most

    def search(kind):
        searching = recipe("W8A8", alpha=kind)
        return search_alpha(checkpoint, weights, samples, searching, alphas).alphas

    assert search("search_per_block") == [alphas[int(np.argmin(row))] for row in table]
    best = alphas[int(np.sum(table, axis=0).argmin())]
    assert search("search") == [best, best] and best != 0.0


def test_output_error_is_0_for_the_same_block_and_1_for_one_that_does_nothing(loaded, samples):
    checkpoint, weights = loaded["llama"]
    config, block = checkpoint.config, weights.blocks[0]
    hidden = embed_samples(config, weights, samples)
    _, outputs = observe_block(config, block, hidden)
    assert output_error(hidden, NUMPY.runner.run(config, block, hidden), outputs) == 0
    silent = {p: Linear(np.zeros_like(block_linears(block)[p].weight)) for p in ("o", "down")}
    found = NUMPY.runner.run(config, replace_modules(block, silent), hidden)
    assert output_error(hidden, found, outputs) == pytest.approx(1)


def test_an_error_whose_square_overflows_is_infinite():
    x = np.full((1, 32), 1e25, F32)
    assert output_error([x], [x], [2 * x]) == np.inf


def test_the_search_leaves_ignored_linears_in_float_too(loaded, samples, monkeypatch):
    checkpoint, weights = loaded["llama"]
    searching, seen = recipe("W8A8", alpha="search", ignore=("layers.1.mlp.down_proj",)), []

    def keep(job, block, recipe):
        unquantized = {part for part, scheme in job.schemes.items() if scheme is None}
        seen.append((job.names["down"], unquantized))
        return block, block

    monkeypatch.setattr("planish.reference.quantize.search.quantize_block", keep)
    search_alpha(checkpoint, weights, samples[:1], searching, (0.5,))
    assert seen == [
        ("model.layers.0.mlp.down_proj", set()),
        ("model.layers.1.mlp.down_proj", {"down"}),
    ]


def test_candidates_run_on_some_samples_and_the_observation_on_all(loaded, samples, monkeypatch):
    checkpoint, weights = loaded["llama"]
    monkeypatch.setattr("planish.reference.quantize.search.SEARCH_SAMPLES", 2)
    ran, watched = [], []

    class Counting(NumpyRunner):
        def run(self, config, block, hidden):
            ran.append(len(hidden))
            return super().run(config, block, hidden)

        def observe(self, config, block, hidden, *rest):
            watched.append(len(hidden))
            return super().observe(config, block, hidden, *rest)

    searching = recipe("W8A8", alpha="search")
    alphas, runtime = (0.4, 0.8), Runtime(runner=Counting())
    found = search_alpha(checkpoint, weights, samples, searching, alphas, runtime)
    assert (ran, watched) == ([2] * 4, [4] * 2)
    absmax, _ = observe_block(
        checkpoint.config, weights.blocks[0], embed_samples(checkpoint.config, weights, samples)
    )
    assert all(np.array_equal(found.observed[0][part], absmax[part]) for part in absmax)


def test_samples_are_spread_evenly():
    assert spread(3, 4) == [0, 1, 2]
    assert spread(8, 4) == [0, 2, 4, 6]
    assert spread(10, 4) == [0, 2, 5, 7]
