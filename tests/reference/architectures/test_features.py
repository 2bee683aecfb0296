"""Removing any feature from an architecture makes its golden fail, by a wide margin."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.config import Alibi, LayerKind, ModelConfig, Moe
from planish.reference.model.rope import Rope
from planish.reference.model.transformer import forward

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCE = 2e-5  # of the logits' range
MARGIN = 50  # times the tolerance, which each removal must exceed


def each_layer(**changes):
    return lambda config: {"layers": tuple(replace(kind, **changes) for kind in config.layers)}


def each_rope(**changes):
    return lambda config: {"ropes": tuple(replace(rope, **changes) for rope in config.ropes)}


def each_scaling(**changes):
    def change(config):
        stretched = (replace(rope.scaling, **changes) for rope in config.ropes)
        ropes = zip(config.ropes, stretched, strict=True)
        return {"ropes": tuple(replace(rope, scaling=scaling) for rope, scaling in ropes)}

    return change


def whole_heads(config):
    return each_rope(dim=config.head_dim)(config)


def one_window(config):
    """The features of the first layer, for all layers."""
    return each_layer(window=config.layers[0].window)(config)


def plain_divisor(config):
    return each_layer(score_divisor=config.head_dim**0.5)(config)


def alibi(**changes):
    return lambda config: {"alibi": replace(config.alibi, **changes)}


def experts(**changes):
    return lambda config: {"moe": replace(config.moe, **changes)}


def to(**changes):
    return lambda config: changes


# golden, feature, what the config says without it
REMOVED = [
    ("mistral-window", "layers.window", each_layer(window=None)),
    ("mixtral-window-untied", "layers.window", each_layer(window=None)),
    ("phi3-window", "layers.window", each_layer(window=None)),
    ("qwen2-windows-untied", "layers.window", one_window),
    ("gemma3_text-two-bases", "layers.window", one_window),
    ("gemma3_text-two-bases", "layers.rope", each_layer(rope=0)),
    ("smollm3-no-rope", "layers.rope", each_layer(rope=0)),
    ("llama-tied-grouped", "layers.rope", each_layer(rope=None)),
    ("gemma2-caps", "layers.score_divisor", plain_divisor),
    ("mpt-clipped-scaled-six-heads", "layers.score_divisor", plain_divisor),
    ("gpt2-scaled-by-layer", "layers.score_divisor", plain_divisor),
    ("llama-tied-grouped", "ropes.theta", each_rope(theta=1e4)),
    ("gemma3_text-old-spelling", "ropes.theta", each_rope(theta=1e4)),
    ("stablelm-3b-form", "ropes.dim", whole_heads),
    ("gpt_neox-parallel", "ropes.dim", whole_heads),
    ("gptj-partial-rotary", "ropes.interleaved", each_rope(interleaved=False)),
    ("glm-grouped", "ropes.interleaved", each_rope(interleaved=False)),
    ("llama-linear-rope", "ropes.scaling", each_rope(scaling=None)),
    ("llama-dynamic-rope", "ropes.scaling", each_rope(scaling=None)),
    ("llama-3-rope", "ropes.scaling", each_rope(scaling=None)),
    ("llama-yarn-scaled", "ropes.scaling", each_rope(scaling=None)),
    ("llama-yarn-scaled", "ropes.scaling", each_scaling(attention_factor=1.0)),
    ("llama-yarn-scaled", "ropes.scaling", each_scaling(truncate=True)),
    ("qwen2-yarn-old-spelling", "ropes.scaling", each_rope(scaling=None)),
    ("gemma3_text-old-spelling", "ropes.scaling", each_rope(scaling=None)),
    ("phi3-longrope-partial", "ropes.scaling", each_rope(scaling=None)),
    ("phi3-longrope-partial", "ropes.scaling", each_scaling(attention_factor=1.0)),
    ("bloom-tied", "alibi.slopes", to(alibi=None)),
    ("falcon-rw-form", "alibi.slopes", to(alibi=None)),
    ("falcon-rw-form", "alibi.divided", alibi(divided=False)),
    ("falcon-rw-form", "alibi.bfloat16", alibi(bfloat16=False)),
    ("mixtral-two-of-four", "moe.top_k", experts(top_k=1)),
    ("mixtral-two-of-four", "moe.normalized", experts(normalized=False)),
    ("qwen3_moe-some-layers", "moe.normalized", experts(normalized=True)),
    ("llama-tied-grouped", "norm", to(norm="layer_norm", norm_bias=False)),
    ("llama-biases-float16", "norm_eps", to(norm_eps=1e-6)),
    ("stablelm-12b-form", "norm_eps", to(norm_eps=1e-5)),
    ("opt-pre-norm", "norm_affine", to(norm_affine=False)),
    ("stablelm-3b-form", "norm_bias", to(norm_bias=False)),
    ("gemma2-caps", "norm_plus_one", to(norm_plus_one=False)),
    ("gemma3_text-two-bases", "norm_plus_one", to(norm_plus_one=False)),
    ("gemma2-caps", "norm_placement", to(norm_placement="pre")),
    ("glm4-sandwich", "norm_placement", to(norm_placement="pre")),
    ("opt-350m-form", "norm_placement", to(norm_placement="pre")),
    ("falcon-40b-form", "parallel", to(parallel=False)),
    ("falcon-40b-form", "shared_norm", to(shared_norm=True)),
    ("bloom-tied", "embed_norm", to(embed_norm=False)),
    ("llama-tied-grouped", "final_norm", to(final_norm=False)),
    ("qwen3-norms", "qk_norm", to(qk_norm=None)),
    ("olmo2-grouped", "qk_norm", to(qk_norm=None)),
    ("stablelm-12b-form", "qk_norm", to(qk_norm=None)),
    ("opt-pre-norm", "position_offset", to(position_offset=1, max_positions=513)),
    ("qwen2-biases", "activation", to(activation="gelu")),
    ("starcoder2-window", "activation", to(activation="relu")),
    ("llama-tied-grouped", "gated_mlp", to(gated_mlp=False)),
    ("qwen2-biases", "qkv_bias", to(qkv_bias=False)),
    ("starcoder2-window", "o_bias", to(o_bias=False)),
    ("starcoder2-window", "mlp_bias", to(mlp_bias=False)),
    ("gptj-partial-rotary", "head_bias", to(head_bias=False)),
    ("mpt-clipped-scaled-six-heads", "qkv_clip", to(qkv_clip=None)),
    ("gemma2-small-caps", "score_cap", to(score_cap=None)),
    ("gemma2-small-caps", "logit_cap", to(logit_cap=None)),
    ("gemma3_text-old-spelling", "logit_cap", to(logit_cap=None)),
    ("gemma2-caps", "embed_scale", to(embed_scale=1.0)),
]

SIZES = {"vocab_size", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "max_positions"}
SIZES |= {"intermediate_size", "embedding_size", "moe.num_experts", "moe.intermediate_size"}
# What other tests hold fast: names, tokens, which head is read, where experts are, INT8 attention
ELSEWHERE = {"model_type", "bos_token_id", "eos_token_ids", "tie_embeddings", "layers.experts"}
ELSEWHERE |= {"kv_cache", "attention"}
PARTS = {"layers": LayerKind, "ropes": Rope, "alibi": Alibi, "moe": Moe}


def error(name, change=None):
    """The distance of a config's logits from the golden's, of their range, the worst of them."""
    checkpoint = open_checkpoint(GOLDEN / name)
    if change is not None:
        config = replace(checkpoint.config, **change(checkpoint.config))
        assert config != checkpoint.config
        checkpoint = replace(checkpoint, config=config)
    config, weights = checkpoint.config, load_weights(checkpoint)
    with np.load(GOLDEN / name / "golden.npz") as stored:
        short, long = (forward(config, weights, stored[f"tokens_{n}"]) for n in ("short", "long"))
        pairs = [(short, stored["logits_short"])]
        pairs += [(long[stored["positions_long"]], stored["logits_long"])]
    return max(np.abs(found - right).max() / np.ptp(right) for found, right in pairs)


def row_id(value):
    return value if isinstance(value, str) else "without"


@pytest.mark.matrix(10)
@pytest.mark.parametrize(("name", "feature", "change"), REMOVED, ids=row_id)
def test_without_a_feature_the_logits_are_others(name, feature, change):
    assert error(name, change) > MARGIN * TOLERANCE


@pytest.mark.matrix(6)
@pytest.mark.parametrize("name", sorted({name for name, _, _ in REMOVED}))
def test_with_all_features_they_are_the_golden_s(name):
    assert error(name) < TOLERANCE


def test_every_feature_of_the_transformer_is_removed_once():
    outer = {field.name for field in fields(ModelConfig)} - PARTS.keys()
    inner = {f"{part}.{field.name}" for part, form in PARTS.items() for field in fields(form)}
    assert {feature for _, feature, _ in REMOVED} == (outer | inner) - SIZES - ELSEWHERE
