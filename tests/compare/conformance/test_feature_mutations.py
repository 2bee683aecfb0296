"""Mistakes in what not every architecture has: found in both forms, and where they were made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.compare.conformance.fast_engine import fast_engine
from planish.reference import linear as reference_linear
from planish.reference.model import transformer as reference_transformer
from tests.compare.mutations import (
    Mutation,
    change_part,
    of_block,
    of_config,
    of_kind,
    other_pairs,
    without_bias,
)

RECIPES = ("float", "naive-W8A8")  # by form; the kernels' linears are those of codes


def one_longer(kind):
    return {"window": kind.window and kind.window + 1}


def alibi(change):
    """Attention by another Alibi."""
    return of_config("attend", lambda config: replace(config, alibi=change(config.alibi)))


def reversed_slopes(alibi):
    return replace(alibi, slopes=alibi.slopes[::-1])


def not_rounded(alibi):
    return replace(alibi, bfloat16=False)


def not_divided(alibi):
    return replace(alibi, divided=False)


def config_with(method, **changes):
    return of_config(method, lambda config: replace(config, **changes))


OPTIONS: dict[str, tuple[str, Mutation]] = {
    "window a token too long": ("mistral-window", of_kind(one_longer)),
    "slopes reversed": ("bloom-tied", alibi(reversed_slopes)),
    "biases not divided": ("falcon-rw-form", alibi(not_divided)),
    "halves turned for neighbours": ("gptj-partial-rotary", of_config("attend", other_pairs)),
    "neighbours turned for halves": ("llama-3-rope", of_config("attend", other_pairs)),
    "cap of scores dropped": ("gemma2-small-caps", config_with("attend", score_cap=None)),
}


@pytest.mark.matrix(18, 3)
@pytest.mark.parametrize("name", OPTIONS)
def test_level_2_names_a_wrong_option_of_attention(judge, name, native):
    golden, mutation = OPTIONS[name]
    first = judge(golden, RECIPES[native], [2], native, mutation=mutation).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, "attention")


@pytest.mark.whole
def test_biases_that_are_not_rounded_are_found_after_256_slots(judge, native):
    """Up to there bfloat16 holds every slot, and slopes that are powers of two round nothing."""
    mutation = alibi(not_rounded)
    assert judge("falcon-rw-form", "float", [2], native, mutation=mutation).agree
    result = judge("falcon-rw-form", "float", [2], native, length=300, mutation=mutation)
    first = result.first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, "attention")


def block_without(**changes):
    return of_block("block", lambda block: replace(block, **changes))


def outer(method, change):
    """Embeddings or lm_head of other outer weights."""

    def call(run, config, weights, *rest):
        return run(config, change(weights), *rest)

    return change_part("modules", **{method: call})


def reversed_tables(config):
    return replace(config, ropes=config.ropes[::-1])


MODEL: dict[str, tuple[str, Mutation, int | None, str]] = {
    "table of the other layers": (
        "gemma3_text-old-spelling",
        of_config("attend", reversed_tables),
        0,
        "attention",
    ),
    "a layer without positions turned": (
        "smollm3-no-rope",
        of_kind(lambda kind: {"rope": 0}),
        1,
        "attention",
    ),
    "divisor of another layer": (
        "gpt2-scaled-by-layer",
        of_kind(lambda kind: {"score_divisor": 8**0.5}),
        1,
        "attention",
    ),
    "norm of each head dropped": (
        "qwen3-norms",
        config_with("attend", qk_norm=None),
        0,
        "attention",
    ),
    "norm of all heads taken of each": (
        "stablelm-12b-form",
        config_with("attend", qk_norm=None),
        0,
        "attention",
    ),
    "norm of the whole width dropped": (
        "olmo2-grouped",
        config_with("attend", qk_norm=None),
        0,
        "attention",
    ),
    "queries, keys and values not clipped": (
        "mpt-clipped-scaled-six-heads",
        config_with("attend", qkv_clip=None),
        0,
        "attention",
    ),
    "attention's output not normalized": (
        "olmo2-grouped",
        block_without(attention_output_norm=None),
        0,
        "block",
    ),
    "the MLP's output not normalized": (
        "glm4-sandwich",
        block_without(mlp_output_norm=None),
        0,
        "block",
    ),
    "attention before the MLP, not beside it": (
        "gpt_neox-parallel",
        config_with("block", parallel=False),
        0,
        "block",
    ),
    "two norms taken for one": (
        "falcon-40b-form",
        config_with("block", shared_norm=True),
        0,
        "block",
    ),
    "embeddings not scaled": (
        "gemma2-small-caps",
        config_with("embed", embed_scale=1.0),
        None,
        "embed",
    ),
    "embeddings not normalized": (
        "bloom-tied",
        outer("embed", lambda weights: replace(weights, embed_norm=None)),
        None,
        "embed",
    ),
    "logits not capped": (
        "gemma2-small-caps",
        config_with("unembed", logit_cap=None),
        None,
        "unembed",
    ),
    "bias of the head dropped": (
        "gptj-partial-rotary",
        outer("unembed", lambda weights: replace(weights, head=without_bias(weights.head))),
        None,
        "unembed",
    ),
}


@pytest.mark.matrix(36, 3)
@pytest.mark.parametrize("name", MODEL)
def test_level_2_names_a_feature_left_out(judge, name, native):
    golden, mutation, layer, part = MODEL[name]
    first = judge(golden, RECIPES[native], [2], native, mutation=mutation).first_mismatch
    assert first is not None
    assert (first.level, first.layer, first.part) == (2, layer, part)


def another_expert(route, config, experts, x):
    weights, chosen = route(config, experts, x)
    last = (chosen[:, -1:] + 1) % len(experts.experts)
    return weights, np.concatenate([chosen[:, :-1], last], axis=1)


def not_normalized(config):
    return replace(config, moe=replace(config.moe, normalized=False))


def weights_exchanged(run, config, experts, x):
    """A mixture that gives the first expert the last one's weight, and the reverse."""
    scores, y = reference_linear.linear(x, experts.router), np.zeros_like(x)
    routed = zip(*reference_transformer.route(config, scores), strict=True)
    for row, (weights, chosen) in enumerate(routed):
        for weight, index in zip(weights[::-1], chosen, strict=True):
            expert = experts.experts[index]
            y[row] += weight * reference_transformer.mlp(config, expert, x[row : row + 1])[0]
    return y


def gate_for_up(run, config, expert, x):
    return run(config, replace(expert, gate=expert.up, up=expert.gate), x)


EXPERTS: dict[str, tuple[Mutation, str]] = {
    "the second expert is another": (
        change_part("modules", route=another_expert),
        "routing weights of 40 rows",
    ),
    "weights not normalized": (of_config("route", not_normalized), "routing weights of 40 rows"),
    "weights exchanged": (change_part("modules", mixture=weights_exchanged), "mixture"),
    "an expert whose gate is its up": (change_part("modules", expert=gate_for_up), "experts.0"),
}


@pytest.mark.whole(5)
@pytest.mark.parametrize("recipe", ["W8A8", "W4A8"])
@pytest.mark.parametrize("name", EXPERTS)
def test_level_2_names_what_is_wrong_with_experts(judge, name, recipe, native):
    mutation, part = EXPERTS[name]
    result = judge("mixtral-window-untied", recipe, [2], native, mutation=mutation)
    first = result.first_mismatch
    assert first is not None
    assert (first.level, first.layer, first.part) == (2, 0, part)


def unlimited_steps(subject):
    """Single steps by an engine that knows of no window."""
    checkpoint = subject.model.checkpoint
    layers = tuple(replace(kind, window=None) for kind in checkpoint.config.layers)
    unlimited = replace(checkpoint, config=replace(checkpoint.config, layers=layers))
    other = fast_engine(unlimited, subject.model.native).steps
    return change_part("steps", step=lambda step, *arguments: other.step(*arguments))(subject)


@pytest.mark.whole
def test_only_level_3_sees_steps_that_forget_the_window(judge, native):
    result = judge("mistral-window", "W8A8", [2, 3], native, mutation=unlimited_steps)
    failed = [item for item in result.checks if not item.agrees]
    assert failed and {item.level for item in failed} == {3}
    assert failed[0].part.startswith("decode at slot 42")
