"""The config.json files of public checkpoints, against what is known of these models.

public_configs.json has their values, except keys that say nothing of the model; the `sizes` that
the model has: layers, heads, key-value heads, head_dim, tied; and the published number of
parameters. `unsure` are the keys (or `parameters`) whose published value we are not sure of.
"""

import json
import math
from pathlib import Path

import pytest

from planish.reference.architectures import ENTRIES, model_config
from planish.reference.errors import ConfigError
from planish.reference.model.rope import Interpolation, Llama3, LongRope
from planish.reference.model.shapes import (
    block_kinds,
    block_norms,
    block_shapes,
    outer_kinds,
    outer_norms,
    outer_shapes,
)

PUBLIC = json.loads((Path(__file__).parent / "public_configs.json").read_text())
PATH = Path("config.json")


def read(name, **changes):
    return model_config(PUBLIC[name]["config"] | changes, PATH)


def count(kinds, shapes):
    """The number of values in the tensors of some modules."""
    rows = {"weight": math.prod, "bias": lambda shape: shape[0]}
    return sum(rows[kind](shapes[part]) for part, each in kinds.items() for kind in each)


def parameters(config):
    """The number of values in all tensors; a tied lm_head adds none."""
    kinds = outer_kinds(config)
    if config.tie_embeddings:
        del kinds["head"]
    total = count(kinds, outer_shapes(config) | outer_norms(config))
    for layer in range(config.num_layers):
        linears = {part: shape for part, (shape, _) in block_shapes(config, layer).items()}
        total += count(block_kinds(config, layer), linears | block_norms(config))
    return total


def test_every_architecture_has_public_configs():
    assert {value["config"]["model_type"] for value in PUBLIC.values()} == set(ENTRIES)


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_config_has_the_published_sizes(name):
    config, public = read(name), PUBLIC[name]
    heads = (config.num_heads, config.num_kv_heads, config.head_dim)
    assert [config.num_layers, *heads, config.tie_embeddings] == public["sizes"]
    assert parameters(config) == pytest.approx(public["parameters"], rel=0.01)


# theta, rotary dim, interleaved, scaling
ROPES = {
    "meta-llama/Llama-2-7b-hf": [(1e4, 128, False, None)],
    "codellama/CodeLlama-7b-hf": [(1e6, 128, False, None)],
    "lmsys/vicuna-13b-v1.5-16k": [(1e4, 128, False, Interpolation(factor=4.0))],
    "meta-llama/Llama-3.1-8B-Instruct": [
        (
            5e5,
            128,
            False,
            Llama3(
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        )
    ],
    "meta-llama/Llama-3.2-1B": [
        (
            5e5,
            64,
            False,
            Llama3(
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        )
    ],
    "mistralai/Ministral-8B-Instruct-2410": [(1e8, 128, False, None)],
    "mistralai/Mixtral-8x22B-v0.1": [(1e6, 128, False, None)],
    "Qwen/Qwen3-30B-A3B": [(1e6, 128, False, None)],
    "tiiuae/falcon-7b": [(1e4, 64, False, None)],
    "tiiuae/falcon-11B": [(500042.0, 128, False, None)],
    "tiiuae/falcon-rw-1b": [],
    "EleutherAI/gpt-j-6b": [(1e4, 64, True, None)],
    "EleutherAI/gpt-neox-20b": [(1e4, 24, False, None)],
    "databricks/dolly-v2-3b": [(1e4, 20, False, None)],
    "togethercomputer/RedPajama-INCITE-Base-3B-v1": [(1e4, 80, False, None)],
    "stabilityai/stablelm-3b-4e1t": [(1e4, 20, False, None)],
    "stabilityai/stablelm-2-12b": [(1e4, 40, False, None)],
    "bigcode/starcoder2-3b": [(999999.4420358813, 128, False, None)],
    "microsoft/Phi-3-mini-4k-instruct": [(1e4, 96, False, None)],
    "microsoft/phi-4": [(2.5e5, 128, False, None)],
    "google/gemma-2-27b": [(1e4, 128, False, None)],
    "google/gemma-3-270m": [(1e6, 256, False, None), (1e4, 256, False, None)],
    "google/medgemma-27b-text-it": [
        (1e6, 128, False, Interpolation(factor=8.0)),
        (1e4, 128, False, None),
    ],
    "HuggingFaceTB/SmolLM3-3B": [(5e6, 128, False, None)],
    "THUDM/glm-4-9b-chat-hf": [(1e4, 64, True, None)],
    "THUDM/GLM-4-32B-0414": [(1e4, 64, True, None)],
    "THUDM/chatglm2-6b": [(1e4, 64, True, None)],
    "THUDM/glm-4-9b-chat": [(5e6, 64, True, None)],
    "THUDM/glm-4-9b-chat-1m": [(1e8, 64, True, None)],
}


@pytest.mark.parametrize("name", ROPES)
def test_public_models_rotate_as_they_were_trained(name):
    ropes = read(name).ropes
    assert [(r.theta, r.dim, r.interleaved, r.scaling) for r in ropes] == ROPES[name]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LENGTH = "original_max_position_embeddings"
QWEN_CARD = {"type": "yarn", "factor": 4.0, LENGTH: 32768}

# model, its rope_scaling where it is not the published one, the positions that its card promises
REACHES = [
    ("meta-llama/Llama-2-7b-hf", None, 4096),
    ("meta-llama/Llama-2-7b-hf", {"type": "dynamic", "factor": 2.0}, 8192),
    ("meta-llama/Llama-2-7b-hf", {"type": "yarn", "factor": 16.0}, 65536),
    ("meta-llama/Llama-2-7b-hf", {**LLAMA3, LENGTH: 4096}, 32768),
    ("meta-llama/Llama-2-7b-hf", LLAMA3, 32768),
    ("meta-llama/Llama-2-7b-hf", {"type": "linear", "factor": 4.0, LENGTH: 1024}, 4096),
    ("meta-llama/Llama-2-7b-hf", {"type": "linear", "factor": 2.5}, 10240),
    ("meta-llama/Llama-2-7b-hf", {"type": "linear", "factor": 0.5}, 4096),
    ("lmsys/vicuna-13b-v1.5-16k", None, 16384),
    ("lmsys/vicuna-13b-v1.5-16k", {"type": "linear", "factor": 8.0}, 32768),  # as LongChat
    ("meta-llama/Llama-3.1-8B-Instruct", None, 131072),
    ("meta-llama/Llama-3.2-1B", None, 131072),
    ("Qwen/Qwen2-7B-Instruct", None, 32768),
    ("Qwen/Qwen2-7B-Instruct", QWEN_CARD, 131072),
    ("Qwen/Qwen3-8B", None, 40960),
    ("Qwen/Qwen3-8B", QWEN_CARD, 131072),
    ("Qwen/Qwen3-8B", {"type": "yarn", "factor": None, LENGTH: 32768}, 40960),
    ("google/medgemma-27b-text-it", None, 131072),
    ("microsoft/Phi-3.5-mini-instruct", None, 131072),
    ("bigscience/bloom-560m", None, 2048),
    ("openai-community/gpt2", None, 1024),
]


@pytest.mark.parametrize(("name", "scaling", "positions"), REACHES)
def test_scaled_positions_reach_as_far_as_the_card_says(name, scaling, positions):
    config = read(name) if scaling is None else read(name, rope_scaling=scaling)
    assert config.max_positions == positions


@pytest.mark.parametrize(
    ("name", "head_dim"),
    [("microsoft/Phi-3.5-mini-instruct", 96), ("microsoft/Phi-4-mini-instruct", 128)],
)
def test_long_context_models_scale_48_pairs(name, head_dim):
    (rope,) = read(name).ropes
    assert isinstance(rope.scaling, LongRope) and (rope.dim, read(name).head_dim) == (96, head_dim)
    assert rope.scaling.original_max_position_embeddings == 4096
    assert rope.scaling.attention_factor == pytest.approx(
        1.1902380714238083
    )  # 1 + 5 / 12, its root
    scaling = PUBLIC[name]["config"]["rope_scaling"]
    assert rope.scaling.long_factor == tuple(map(float, scaling["long_factor"]))
    assert read(name, rope_scaling={**scaling, "type": "su"}) == read(name)  # the first spelling


EVERY_SIXTH = [None if (i + 1) % 6 == 0 else 512 for i in range(26)]
WINDOWS = {
    "mistralai/Mistral-7B-v0.1": [4096] * 32,
    "mistralai/Mistral-7B-Instruct-v0.3": [None] * 32,
    "mistralai/Ministral-8B-Instruct-2410": [32768] * 36,
    "mistralai/Mixtral-8x7B-v0.1": [None] * 32,
    "Qwen/Qwen1.5-0.5B": [None] * 24,
    "Qwen/Qwen2-7B-Instruct": [None] * 28,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": [None] * 28,
    "Qwen/Qwen3-0.6B": [None] * 28,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": [None] * 48,
    "google/gemma-2-9b": [4096, None] * 21,
    "google/gemma-3-1b-it": EVERY_SIXTH,
    "google/gemma-3-270m": EVERY_SIXTH[:18],
    "microsoft/Phi-3-mini-4k-instruct": [2047] * 32,
    "microsoft/phi-4": [None] * 40,
    "bigcode/starcoder2-7b": [4096] * 32,
    "HuggingFaceTB/SmolLM3-3B": [None] * 36,
}


@pytest.mark.parametrize("name", WINDOWS)
def test_public_models_have_their_windows(name):
    assert [layer.window for layer in read(name).layers] == WINDOWS[name]


FEATURES = {
    "facebook/opt-350m": {"norm_placement": "post", "final_norm": False, "embedding_size": 512},
    "bigscience/bloom-560m": {"embed_norm": True, "activation": "gelu_tanh", "ropes": ()},
    "nvidia/megatron-gpt2-345m, converted": {"activation": "gelu_tanh", "position_offset": 0},
    "bigcode/starcoder": {"activation": "gelu", "max_positions": 8192},
    "tiiuae/falcon-7b": {"parallel": True, "shared_norm": True, "qkv_bias": False, "alibi": None},
    "tiiuae/falcon-40b": {"parallel": True, "shared_norm": False},
    "tiiuae/falcon-11B": {"parallel": True, "shared_norm": True},
    "tiiuae/falcon-rw-1b": {"parallel": False, "qkv_bias": True},
    "EleutherAI/gpt-neox-20b": {"parallel": True, "shared_norm": False, "activation": "gelu_tanh"},
    "togethercomputer/RedPajama-INCITE-Base-3B-v1": {"parallel": False},
    "mosaicml/mpt-7b": {"qkv_clip": None, "norm_bias": False, "max_positions": 2048},
    "mosaicml/mpt-7b-storywriter": {"qkv_clip": 6.0, "max_positions": 65536},
    "google/gemma-2-2b-it": {"score_cap": 50.0, "logit_cap": 30.0, "norm_placement": "sandwich"},
    "google/gemma-3-1b-it": {"score_cap": None, "logit_cap": None, "qk_norm": "head"},
    "stabilityai/stablelm-2-12b": {"qk_norm": "each_head", "shared_norm": True},
    "stabilityai/stablelm-2-zephyr-1_6b": {"qk_norm": None, "qkv_bias": True, "parallel": False},
    "allenai/OLMo-2-1124-7B": {"norm_placement": "output", "qk_norm": "width", "norm_eps": 1e-6},
    "THUDM/GLM-4-9B-0414": {"norm_placement": "sandwich", "norm_eps": 1e-5},
    "Qwen/Qwen2-0.5B": {"qkv_bias": True, "o_bias": False, "qk_norm": None},
    "Qwen/Qwen3-8B": {"qkv_bias": False, "qk_norm": "head"},
    "meta-llama/Llama-3.1-8B-Instruct": {"eos_token_ids": (128001, 128008, 128009)},
    "THUDM/glm-4-9b-chat": {"max_positions": 131072, "norm_eps": 1.5625e-07, "qkv_bias": True},
}


@pytest.mark.parametrize("name", FEATURES)
def test_public_models_have_their_features(name):
    config = read(name)
    assert {feature: getattr(config, feature) for feature in FEATURES[name]} == FEATURES[name]


@pytest.mark.parametrize(
    ("name", "divisors"),
    [
        ("stanford-crfm/alias-gpt2-small-x21", [8 * (layer + 1) for layer in range(12)]),
        ("openai-community/gpt2", [8] * 12),
        ("google/gemma-2-27b", [12] * 46),
        ("google/medgemma-27b-text-it", [math.sqrt(168)] * 62),
        ("mosaicml/mpt-7b", [math.sqrt(128)] * 32),
    ],
)
def test_public_models_divide_their_scores(name, divisors):
    assert [layer.score_divisor for layer in read(name).layers] == pytest.approx(divisors)


@pytest.mark.parametrize(
    ("name", "mixture"),
    [
        ("mistralai/Mixtral-8x22B-v0.1", (8, 2, 16384, True)),
        ("Qwen/Qwen3-30B-A3B", (128, 8, 768, True)),
    ],
)
def test_public_mixtures(name, mixture):
    config = read(name)
    moe = config.moe
    assert (moe.num_experts, moe.top_k, moe.intermediate_size, moe.normalized) == mixture
    assert all(layer.experts for layer in config.layers)


def test_every_fourth_layer_of_smollm3_has_no_positions():
    ropes = [layer.rope for layer in read("HuggingFaceTB/SmolLM3-3B").layers]
    assert ropes == [0, 0, 0, None] * 9


def test_a_config_saved_without_its_attention_object_has_the_defaults():
    """transformers 4.33 to 4.40 lost its content."""
    plain, lost = read("mosaicml/mpt-7b"), read("OpenVINO/mpt-7b-int8-ov")
    assert plain == lost and plain.alibi is not None


def test_the_first_names_of_sizes_are_read():
    name = "ybelkada/falcon-7b-sharded-bf16"
    assert read(name) == read("tiiuae/falcon-7b")
    changed = read(name, n_layer=60, n_head=142)
    assert (changed.num_layers, changed.num_heads) == (60, 142)


ASKS_FOR_MORE = [
    ("mosaicml/mpt-7b", {"ffn_config": {"ffn_type": "mptglu"}}, "ffn_type"),
    ("mosaicml/mpt-7b", {"ffn_config": {"ffn_act_fn": {"name": "silu"}}}, "ffn_act_fn"),
    ("mosaicml/mpt-7b", {"attn_config": {"rope": True}}, "rope"),
    ("mosaicml/mpt-7b", {"attn_config": {"qk_gn": True}}, "qk_gn"),
    ("mosaicml/mpt-7b", {"attn_config": {"sliding_window_size": 512}}, "sliding_window_size"),
    ("mosaicml/mpt-7b", {"attn_config": {"attn_logit_softcapping": 30.0}}, "attn_logit_softcap"),
    ("mosaicml/mpt-7b", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("mosaicml/mpt-7b", {"ffn_config": "mptmlp"}, "ffn_config"),
    ("openai-community/gpt2", {"attention_head_type": "multiquery"}, "attention_head_type"),
    ("meta-llama/Llama-2-7b-hf", {"rope_condense_ratio": 8}, "rope_condense_ratio"),
    ("google/gemma-3-270m", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("google/gemma-3-270m", {"sliding_window_pattern": 3}, "_sliding_window_pattern"),
]


@pytest.mark.parametrize(("name", "changes", "key"), ASKS_FOR_MORE)
def test_a_relative_with_another_graph_is_refused_by_its_key(name, changes, key):
    with pytest.raises(ConfigError, match=rf"config\.json: {key}\w*: bad value; expected"):
        read(name, **changes)


def test_explicit_defaults_of_newer_versions_are_read():
    attention = {"rope": False, "qk_gn": False, "sliding_window_size": -1}
    inner = PUBLIC["mosaicml/mpt-7b"]["config"]["attn_config"] | attention
    changes = {"ffn_config": {"ffn_type": "mptmlp"}, "final_logit_softcapping": None}
    assert read("mosaicml/mpt-7b", attn_config=inner, **changes) == read("mosaicml/mpt-7b")


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava", "qwen2_vl"])
def test_a_wrapper_of_several_models_is_refused_in_one_line(kind):
    values = {"model_type": kind, "text_config": {"model_type": "llama"}, "vision_config": {}}
    with pytest.raises(ConfigError) as caught:
        model_config(values, PATH)
    said = "config.json: model_type: wraps a text model and others; only pure text models can"
    assert str(caught.value) == f"{said} be read; found {kind!r}"
