"""The transformer: chunks, cache and batch change nothing; taps see what linears read."""

import numpy as np
import pytest

from planish.reference.engine import Engine
from planish.reference.errors import PromptError
from planish.reference.model.transformer import (
    ROTATED,
    block_forward,
    decode_step,
    embed,
    empty_cache,
    forward,
    prefill,
)
from planish.reference.model.weights import block_linears
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling

MODELS = ["llama", "llama-tied", "opt", "opt-350m-form", "opt-gelu"]
TOKENS = np.random.default_rng(0).integers(0, 48, 30).tolist()


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.matrix(3)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 29, 30, 512])
def test_prefill_in_chunks_equals_forward(loaded, name, chunk):
    checkpoint, weights = loaded[name]
    logits, cache = prefill(checkpoint.config, weights, TOKENS, chunk)
    assert close(logits, forward(checkpoint.config, weights, TOKENS))
    assert cache.length == 30 and logits.shape == (30, 48) and logits.dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_prefill_then_decode_equals_forward_to_the_last_position(loaded, name):
    checkpoint, weights = loaded[name]
    config = checkpoint.config
    tokens = (TOKENS * 3)[: config.max_positions]
    expected = forward(config, weights, tokens)
    logits, cache = prefill(config, weights, tokens[:50], 16)
    rows = [logits]
    for token in tokens[50:]:
        row, cache = decode_step(config, weights, token, cache)
        rows.append(row[None])
    assert cache.length == config.max_positions == 64
    assert close(np.concatenate(rows), expected)


@pytest.mark.parametrize("name", MODELS)
def test_later_tokens_do_not_change_earlier_logits(loaded, name):
    checkpoint, weights = loaded[name]
    changed = [*TOKENS[:20], *((t + 1) % 48 for t in TOKENS[20:])]
    here = forward(checkpoint.config, weights, TOKENS)
    there = forward(checkpoint.config, weights, changed)
    assert close(there[:20], here[:20]) and not close(there[20:], here[20:])


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_tokens_matters(loaded, name):
    checkpoint, weights = loaded[name]
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    here = forward(checkpoint.config, weights, TOKENS)[-1]
    assert not close(forward(checkpoint.config, weights, swapped)[-1], here)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_rows_of_a_batch_are_those_of_each_prompt_alone(loaded, name):
    engine = Engine(loaded[name][0])
    prompts, stop = [[5, 6, 7], [9], [3] * 20], Stop(max_new_tokens=6, ignore_eos=True)
    sampling = Sampling()
    together = list(engine.generate(prompts, stop, sampling))
    for row, prompt in enumerate(prompts):
        alone = [token for _, token in engine.generate([prompt], stop, sampling)]
        assert [token for r, token in together if r == row] == alone and len(alone) == 6


def test_greedy_generation_is_the_argmax_of_forward(loaded):
    checkpoint, weights = loaded["llama"]
    stop = Stop(max_new_tokens=8, ignore_eos=True)
    found = [t for _, t in Engine(checkpoint).generate([[4, 5]], stop, Sampling())]
    tokens = [4, 5]
    for token in found:
        assert token == forward(checkpoint.config, weights, tokens)[-1].argmax()
        tokens.append(token)


def test_an_empty_cache_has_no_slots(loaded):
    config = loaded["llama"][0].config
    cache = empty_cache(config)
    assert cache.length == 0 and len(cache.keys) == config.num_layers
    assert cache.values[0].shape == (0, config.num_kv_heads, config.head_dim)


def test_a_tap_sees_the_input_of_every_linear(loaded):
    for name, gate in (("llama", {"gate"}), ("opt", set())):
        checkpoint, weights = loaded[name]
        config, seen = checkpoint.config, {}
        x = embed(config, weights, np.array(TOKENS), np.arange(30))
        nothing = empty_cache(config)
        past = (nothing.keys[0], nothing.values[0])
        block_forward(config, weights.blocks[0], x, np.arange(30), past, seen.__setitem__)
        assert set(seen) == {"q", "k", "v", "o", "up", "down", *ROTATED} | gate
        heads = {f"attention.{name}": getattr(weights.blocks[0], name) for name in "qkv"}
        for part, linear in heads.items():  # after rotation, for the calibration of their scales
            assert seen.pop(part).shape == (30, len(linear.weight))
        for part, inputs in seen.items():
            assert inputs.shape == (30, block_linears(weights.blocks[0])[part].weight.shape[1])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "is empty"), ([48], "expected 0..47, found 48"), ([-1], "found -1"), ([1] * 65, "65")],
)
def test_tokens_that_the_model_cannot_take_are_refused(loaded, tokens, message):
    with pytest.raises(PromptError, match=message):
        Engine(loaded["llama"][0]).forward(tokens)


def test_exactly_all_positions_fit(loaded):
    assert Engine(loaded["opt"][0]).forward([1] * 64).shape == (64, 48)
