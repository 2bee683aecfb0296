"""Mistakes of the engine and its cache, which only the whole model shows, in both forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compare.conftest import POSITIONS
from tests.compare.mutations import Mutation, change_part


def nan_in_forward(forward, tokens):
    logits = forward(tokens).copy()
    logits[-1, -1] = np.nan
    return logits


def one_short(run, tokens, *rest):
    return run(tokens[:-1], *rest)


def batch_one_short(prefill_batch, prompts, new_tokens):
    return prefill_batch([list(prompt[:-1]) for prompt in prompts], new_tokens)


def last_slot_unused(step, tokens, positions, state):
    return step(tokens, np.minimum(positions, POSITIONS - 2), state)


def one_position_late(step, tokens, positions, state):
    return step(tokens, np.minimum(positions + 1, state.slots - 1), state)


def one_position_early(step, tokens, positions, state):
    return step(tokens, np.maximum(positions - 1, 0), state)


def all_in_one_row(prefill_batch, prompts, new_tokens):
    """The right logits, and a cache whose every row holds the last prompt."""
    longest = max(prompts, key=len)
    logits, _ = prefill_batch(prompts, new_tokens)
    _, state = prefill_batch([prompts[-1]] * (len(prompts) - 1) + [longest], new_tokens)
    return logits, state


def unlikeliest_first(generate, prompts, new_tokens):
    return [[(token + 1) % 200 for token in row] for row in generate(prompts, new_tokens)]


LEVEL_3: dict[str, tuple[str, Mutation, str]] = {
    "steps one position late": (
        "W8A8",
        change_part("steps", step=one_position_late),
        "decode at slot 58 of 64",
    ),
    "steps one position early": (
        "W8A8",
        change_part("steps", step=one_position_early),
        "decode at slot 58 of 64",
    ),
    "last slot never used": (
        "O2",
        change_part("steps", step=last_slot_unused),
        "decode at slot 63 of 64",
    ),
    "last token of the prompt dropped": (
        "float",
        change_part("model", forward=one_short),
        "logits",
    ),
    "last token of a batch dropped": (
        "W8A8",
        change_part("steps", prefill_batch=batch_one_short),
        "row 0 of a batch of 3",
    ),
    "every prompt in the same row": (
        "W8A8",
        change_part("steps", prefill_batch=all_in_one_row),
        "row 0 of a batch of 3",
    ),
    "NaN in one logit": ("W8A8", change_part("model", forward=nan_in_forward), "logits"),
    "a token that is not the likeliest": (
        "float",
        change_part("steps", generate=unlikeliest_first),
        "greedy tokens of row 0",
    ),
}


@pytest.mark.whole(5)
@pytest.mark.parametrize("name", LEVEL_3)
def test_level_3_names_what_only_the_whole_shows(judge, name, native):
    recipe, mutation, part = LEVEL_3[name]
    result = judge("llama", recipe, [3], native, mutation=mutation)
    first = result.first_mismatch
    assert first is not None
    assert first.level == 3
    assert first.part.startswith(part)
    assert not result.agree
    assert "DIFFER: level 3" in result.table()


def moved(arrays):
    """A cache whose slots hold what their neighbours should; in tiled keys, those of their tile."""

    def move(array):
        return jnp.roll(array, 1, axis=-1 if array.ndim == 5 else 2)

    return jax.tree.map(move, arrays)


def prefilled(change):
    def prefill(run, *arguments):
        logits, state = run(*arguments)
        return logits, change(state)

    return change_part("steps", prefill=prefill)


@pytest.mark.whole
@pytest.mark.parametrize("recipe", ["float", "W8A8"])
def test_only_level_3_sees_slots_moved(judge, recipe, native):
    """Attention over a whole prompt is right; who reads the cache later finds other slots.

    The logits hardly move, so the cache is compared, too.
    """
    result = judge("llama", recipe, [2, 3], native, mutation=prefilled(moved))
    failed = [item for item in result.checks if not item.agrees]
    assert {item.level for item in failed} == {3}
    assert {"keys in the cache", "values in the cache"} <= {item.part for item in failed}


@pytest.mark.whole
def test_the_cache_slot_that_was_left_out_is_named(judge):
    mutation = change_part("steps", step=last_slot_unused)
    result = judge("llama", "O2", [3], mutation=mutation)
    failed = [check for check in result.checks if not check.agrees]
    slots = {check.index for check in failed if check.part.endswith("in the cache")}
    assert slots == {(63,)}
