"""Mistakes of the engine and its cache, which only the whole model shows, in both forms."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.native import backend as native_backend
from planish.fast.session import engine as fast_engine
from planish.fast.session import sampling as session_sampling
from planish.fast.session import slots as cache_slots
from planish.fast.xla import attention as xla_attention
from tests.compare.conftest import Mutation, wrap


def nan_in_forward(forward, engine, tokens):
    logits = forward(engine, tokens).copy()
    logits[-1, -1] = np.nan
    return logits


def one_short(prefill, engine, tokens, slots, **options):
    return prefill(engine, tokens[:-1], slots, **options)


def batch_one_short(prefill_batch, engine, prompts, stop):
    return prefill_batch(engine, [list(prompt[:-1]) for prompt in prompts], stop)


def one_slot_late(append, past, k, v, positions):
    return append(past, k, v, positions + 1)


def last_slot_unused(step, engine, tokens, positions, cache):
    return step(engine, tokens, np.minimum(positions, cache.slots - 2), cache)


def one_position_late(step, engine, tokens, positions, cache):
    return step(engine, tokens, positions + 1, cache)


def one_position_early(step, engine, tokens, positions, cache):
    return step(engine, tokens, np.maximum(positions - 1, 0), cache)


def always_row_zero(insert, cache, single, row):
    return insert(cache, single, row * 0)


ENGINE = fast_engine.Engine
LEVEL_3: dict[str, tuple[str, Mutation, str]] = {
    "steps one position late": (
        "W8A8",
        wrap(ENGINE, "decode_step", one_position_late),
        "decode at slot 58 of 64",
    ),
    "steps one position early": (
        "W8A8",
        wrap(ENGINE, "decode_step", one_position_early),
        "decode at slot 58 of 64",
    ),
    "last slot never used": (
        "O2",
        wrap(ENGINE, "decode_step", last_slot_unused),
        "decode at slot 63 of 64",
    ),
    "last token of the prompt dropped": ("float", wrap(ENGINE, "prefill", one_short), "logits"),
    "last token of a batch dropped": (
        "W8A8",
        wrap(ENGINE, "prefill_batch", batch_one_short),
        "row 0 of a batch of 3",
    ),
    "every prompt in the same row": (
        "W8A8",
        wrap(cache_slots, "insert", always_row_zero),
        "row 0 of a batch of 3",
    ),
    "NaN in one logit": ("W8A8", wrap(ENGINE, "forward", nan_in_forward), "logits"),
    "a token that is not the likeliest": (
        "float",
        wrap(
            session_sampling,
            "sample",
            lambda sample, logits, *rest: int(np.argsort(logits)[-2]),
        ),
        "greedy tokens of row 0",
    ),
}


@pytest.mark.matrix(5)
@pytest.mark.parametrize("name", LEVEL_3)
def test_level_3_names_what_only_the_whole_shows(judge, mutate, name):
    recipe, mutation, part = LEVEL_3[name]
    mutation(mutate)
    result = judge("llama", recipe, [3])
    first = result.first_mismatch
    assert first is not None
    assert first.level == 3
    assert first.part.startswith(part)
    assert not result.agree
    assert "DIFFER: level 3" in result.table()


NATIVELY = ("steps one position early", "last slot never used", "every prompt in the same row")


@pytest.mark.matrix(3)
@pytest.mark.parametrize("name", NATIVELY)
def test_level_3_names_it_natively(judge, mutate, name):
    recipe, mutation, part = LEVEL_3[name]
    mutation(mutate)
    first = judge("llama", recipe, [3], native=True).first_mismatch
    assert first is not None and first.part.startswith(part)


def last_in_the_order(sample, logits, *rest):
    return sample(-logits, *rest)


def test_level_3_names_a_kernel_that_samples_another_token(judge, mutate):
    wrap(native_backend, "sample", last_in_the_order)(mutate)
    result = judge("llama", "W8A8", [3], native=True)
    assert {check.part for check in result.checks if not check.agrees} == {
        f"greedy tokens of row {row}" for row in range(3)
    }


def slots_moved_on(attention, *arguments, **options):
    mixed, past = attention(*arguments, **options)
    return mixed, replace(past, keys=jnp.roll(past.keys, 1, axis=-1))


@pytest.mark.matrix(2)
@pytest.mark.parametrize("recipe", ["float", "W8A8"])
def test_only_level_3_sees_slots_moved_within_their_tile(judge, mutate, recipe):
    """Attention over a whole prompt is right; who reads its keys later finds others."""
    wrap(native_backend, "attention", slots_moved_on)(mutate)
    failed = [item for item in judge("llama", recipe, [2, 3], True).checks if not item.agrees]
    assert {item.level for item in failed} == {3}
    assert (3, "keys in the cache") in {(item.level, item.part) for item in failed}
    assert (3, "values in the cache") not in {(item.level, item.part) for item in failed}


@pytest.mark.matrix(2)
@pytest.mark.parametrize("recipe", ["float", "W8A8"])
def test_only_level_3_sees_a_cache_slot_off_by_one(judge, mutate, recipe):
    """A whole prompt fills its cache: the late slot is clamped, and only steps and rests differ."""
    wrap(xla_attention, "append", one_slot_late)(mutate)
    result = judge("llama", recipe, [2, 3])
    assert result.first_mismatch is not None
    assert result.first_mismatch.level == 3
    assert {(check.level, check.part) for check in result.checks if not check.agrees} >= {
        (3, "keys in the cache"),
        (3, "values in the cache"),
    }


@pytest.mark.whole
def test_the_cache_slot_that_was_left_out_is_named(judge, mutate):
    wrap(ENGINE, "decode_step", last_slot_unused)(mutate)
    failed = [check for check in judge("llama", "O2", [3]).checks if not check.agrees]
    slots = {check.index for check in failed if check.part.endswith("in the cache")}
    assert slots == {(63,)}
