"""Mistakes in what not every architecture has: each is found in both forms, and where it was made.

Attention's options are changed in the backend's config natively, and in functions of
fast/xla/attention.py in XLA's form; the rest is fast/model/transformer.py's in both.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import pytest

from planish.fast.model import transformer as fast_transformer
from planish.fast.model import weights as fast_weights
from planish.fast.native import backend as native_backend
from planish.fast.native import moe as native_moe
from planish.fast.xla import attention as xla_attention
from planish.fast.xla import backend as xla_backend
from planish.fast.xla import moe as xla_moe
from tests.compare.conftest import Mutation, wrap

RECIPES = ("float", "naive-W8A8")  # by form; the kernels' linears are those of codes


def option(name, change):
    """Attention's kernel with one of its options changed."""

    def call(attention, qkv, positions, past, config):
        config = replace(config, **{name: change(getattr(config, name))})
        return attention(qkv, positions, past, config)

    return wrap(native_backend, "attention", call)


def interleaved_or_not(rope):
    return replace(rope, interleaved=not rope.interleaved)


def longer(window):
    return window and window + 1


def windowed(mask, positions, slots, window=None):
    return mask(positions, slots, longer(window))


def other_pairs(rotate, x, cos, sin, rope):
    return rotate(x, cos, sin, replace(rope, interleaved=not rope.interleaved))


def reversed_slopes(alibi):
    return replace(alibi, slopes=alibi.slopes[::-1])


def not_rounded(alibi):
    return replace(alibi, bfloat16=False)


def not_divided(alibi):
    return replace(alibi, divided=False)


def biased(change):
    """XLA's biases of another Alibi."""
    return wrap(
        xla_attention,
        "biased",
        lambda biased, scores, divisor, alibi, *rest: biased(scores, divisor, change(alibi), *rest),
    )


OPTIONS: dict[str, tuple[str, Mutation, Mutation]] = {
    "window a token too long": (
        "mistral-window",
        wrap(xla_attention, "causal_mask", windowed),
        option("window", longer),
    ),
    "slopes reversed": ("bloom-tied", biased(reversed_slopes), option("alibi", reversed_slopes)),
    "biases not divided": ("falcon-rw-form", biased(not_divided), option("alibi", not_divided)),
    "halves turned for neighbours": (
        "gptj-partial-rotary",
        wrap(xla_attention, "rotate", other_pairs),
        option("rope", interleaved_or_not),
    ),
    "neighbours turned for halves": (
        "llama-3-rope",
        wrap(xla_attention, "rotate", other_pairs),
        option("rope", interleaved_or_not),
    ),
    "cap of scores dropped": (
        "gemma2-small-caps",
        wrap(xla_attention, "capped", lambda capped, x, cap: x),
        option("cap", lambda cap: None),
    ),
}


@pytest.mark.matrix(5)
@pytest.mark.parametrize("name", OPTIONS)
def test_level_2_names_a_wrong_option_of_attention(judge, mutate, name, native):
    golden, *mutations = OPTIONS[name]
    mutations[native](mutate)
    first = judge(golden, RECIPES[native], [2], native).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, "attention")


@pytest.mark.whole
def test_biases_that_are_not_rounded_are_found_behind_256_slots(judge, mutate, native):
    """Up to there bfloat16 holds every slot, and slopes that are powers of two round nothing."""
    mutation = option("alibi", not_rounded) if native else biased(not_rounded)
    mutation(mutate)
    assert judge("falcon-rw-form", "float", [2], native).agree
    first = judge("falcon-rw-form", "float", [2], native, length=300).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, "attention")


def of_config(name, **changes):
    """A function of the model that is given another config."""

    def call(function, config, *arguments, **options):
        return function(replace(config, **changes), *arguments, **options)

    return wrap(fast_transformer, name, call)


def of_block(name, **changes):
    """A function of the model that is given a block with other parts."""

    def call(function, config, block, *arguments, **options):
        return function(config, replace(block, **changes), *arguments, **options)

    return wrap(fast_transformer, name, call)


def of_kind(**changes):
    """Attention of another kind of layer."""

    def call(mix, config, block, *arguments):
        return mix(config, replace(block, kind=replace(block.kind, **changes)), *arguments)

    return wrap(fast_transformer, "attend_slots", call)


def other_tables(attend, config, block, qkv, positions, *rest):
    positions = replace(positions, tables=positions.tables[::-1])
    return attend(config, block, qkv, positions, *rest)


def head_without_bias(unembed, config, weights, *rest):
    return unembed(config, replace(weights, head=replace(weights.head, bias=None)), *rest)


MODEL: dict[str, tuple[str, Mutation, int | None, str]] = {
    "table of the other layers": (
        "gemma3_text-old-spelling",
        wrap(fast_transformer, "attend_slots", other_tables),
        0,
        "attention",
    ),
    "a layer without positions turned": ("smollm3-no-rope", of_kind(rope=0), 1, "attention"),
    "divisor of another layer": (
        "gpt2-scaled-by-layer",
        of_kind(score_divisor=8**0.5),
        1,
        "attention",
    ),
    "norm of each head dropped": (
        "qwen3-norms",
        of_config("clip_and_normalize", qk_norm=None),
        0,
        "attention",
    ),
    "norm of all heads taken of each": (
        "stablelm-12b-form",
        of_config("clip_and_normalize", qk_norm=None),
        0,
        "attention",
    ),
    "norm of the whole width dropped": (
        "olmo2-grouped",
        of_config("clip_and_normalize", qk_norm=None),
        0,
        "attention",
    ),
    "queries, keys and values not clipped": (
        "mpt-clipped-scaled-six-heads",
        of_config("clip_and_normalize", qkv_clip=None),
        0,
        "attention",
    ),
    "attention's output not normalized": (
        "olmo2-grouped",
        of_block("block_forward", attention_output_norm=None),
        0,
        "block",
    ),
    "the MLP's output not normalized": (
        "glm4-sandwich",
        of_block("block_forward", mlp_output_norm=None),
        0,
        "block",
    ),
    "attention before the MLP, not beside it": (
        "gpt_neox-parallel",
        of_config("block_forward", parallel=False),
        0,
        "block",
    ),
    "two norms taken for one": (
        "falcon-40b-form",
        of_config("block_forward", shared_norm=True),
        0,
        "block",
    ),
    "embeddings not scaled": (
        "gemma2-small-caps",
        of_config("embed", embed_scale=1.0),
        None,
        "embed",
    ),
    "embeddings not normalized": (
        "bloom-tied",
        wrap(
            fast_transformer,
            "embed",
            lambda embed, c, w, *rest: embed(c, replace(w, embed_norm=None), *rest),
        ),
        None,
        "embed",
    ),
    "logits not capped": (
        "gemma2-small-caps",
        of_config("unembed", logit_cap=None),
        None,
        "unembed",
    ),
    "bias of the head dropped": (
        "gptj-partial-rotary",
        wrap(fast_transformer, "unembed", head_without_bias),
        None,
        "unembed",
    ),
}


@pytest.mark.matrix(5)
@pytest.mark.parametrize("name", MODEL)
def test_level_2_names_a_feature_left_out(judge, mutate, name, native):
    golden, mutation, layer, part = MODEL[name]
    mutation(mutate)
    first = judge(golden, RECIPES[native], [2], native).first_mismatch
    assert first is not None
    assert (first.level, first.layer, first.part) == (2, layer, part)


def another_expert(route, *arguments):
    *rest, chosen = route(*arguments)
    last = (chosen[:, -1:] + 1) % 3
    return *rest, jnp.concatenate([chosen[:, :-1], last], axis=1)


def not_normalized(route, config, scores):
    return route(replace(config, moe=replace(config.moe, normalized=False)), scores)


def not_normalized_natively(route, rows, weight, top_k, normalized, *rest):
    return route(rows, weight, top_k, False, *rest)


def shares_exchanged(mixture, config, experts, x, shares, *rest):
    return mixture(config, experts, x, shares[:, ::-1], *rest)


EXPERTS: dict[str, tuple[Mutation, Mutation, tuple[str, str]]] = {
    "the second expert is another": (
        wrap(xla_moe, "route", another_expert),
        wrap(native_moe, "route_rows", another_expert),
        ("shares of 40 rows", "shares of 8 rows"),
    ),
    "shares not normalized": (
        wrap(xla_moe, "route", not_normalized),
        wrap(native_moe, "route_rows", not_normalized_natively),
        ("shares of 40 rows", "shares of 8 rows"),
    ),
    "shares exchanged": (
        wrap(xla_moe, "mix_experts", shares_exchanged),
        wrap(native_moe, "mix_experts", shares_exchanged),
        ("mixture", "mixture"),
    ),
}


@pytest.mark.matrix(5)
@pytest.mark.parametrize("recipe", ["W8A8", "W4A8"])
@pytest.mark.parametrize("name", EXPERTS)
def test_level_2_names_what_is_wrong_with_experts(judge, mutate, name, recipe, native):
    *mutations, parts = EXPERTS[name]
    mutations[native](mutate)
    first = judge("mixtral-window-untied", recipe, [2], native).first_mismatch
    assert first is not None
    assert (first.level, first.layer, first.part) == (2, 0, parts[native])


def gates_for_ups(place, stored):
    placed = place(stored)
    return replace(placed, gate=placed.up, up=placed.gate)


def test_level_2_names_an_expert_whose_gate_is_its_up(judge, mutate, native):
    wrap(fast_weights, "place_experts", gates_for_ups)(mutate)
    first = judge("mixtral-window-untied", "W8A8", [2], native).first_mismatch
    assert first is not None
    assert (first.level, first.layer, first.part) == (2, 0, "experts.0")


def step_without_window(attention, qkv, positions, past, config):
    config = replace(config, window=None) if qkv[0].shape[1] == 1 else config
    return attention(qkv, positions, past, config)


@pytest.mark.whole
def test_only_level_3_sees_steps_that_forget_the_window(judge, mutate, native):
    wrap(
        native_backend if native else xla_backend,
        "attention",
        step_without_window,
    )(mutate)
    failed = [
        item for item in judge("mistral-window", "W8A8", [2, 3], native).checks if not item.agrees
    ]
    assert failed and {item.level for item in failed} == {3}
    assert failed[0].part.startswith("decode at slot 42")
