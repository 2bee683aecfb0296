"""Configs of today's architectures that contradict themselves or their tensors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.architectures import model_config
from planish.reference.errors import CheckpointError, ConfigError
from planish.reference.files.load import load_block, load_weights, open_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}
GEMMA3_FLAT = {"rope_type": "default", "rope_theta": 1e4}

# golden, what its config says instead, the error
REFUSED = [
    ("mistral-window", {"sliding_window": 0}, "sliding_window: .*in 1.*found 0"),
    ("mistral-window", {"sliding_window": -64}, "sliding_window: .*found -64"),
    ("mistral-window", {"sliding_window": 64.5}, "sliding_window: .*found 64.5"),
    ("mistral-window", {"layer_types": ["full_attention"] * 2}, "layer_types: .*null, the only"),
    ("mistral-window", {"num_key_value_heads": 3}, "num_key_value_heads: .*divisor of 4"),
    ("mixtral-two-of-four", {"num_experts_per_tok": 5}, "num_experts_per_tok: .*4 experts.*5"),
    ("mixtral-two-of-four", {"num_experts_per_tok": 0}, "num_experts_per_tok: .*found 0"),
    ("mixtral-two-of-four", {"num_local_experts": 0}, "num_local_experts: .*found 0"),
    ("mixtral-two-of-four", {"num_local_experts": 1}, "num_experts_per_tok: .*the 1 experts"),
    ("mixtral-window-untied", {"sliding_window": 0}, "sliding_window: .*found 0"),
    ("qwen2-windows-untied", {"sliding_window": -1}, "sliding_window: .*found -1"),
    ("qwen2-windows-untied", {"max_window_layers": -1}, "max_window_layers: .*in 0..*found -1"),
    ("qwen2-windows-untied", {"use_sliding_window": 1}, "use_sliding_window: .*true or false"),
    ("qwen2-windows-untied", {"use_sliding_window": False}, "sliding_window: .*a window, for"),
    ("qwen2-windows-untied", {"layer_types": ["full_attention"]}, "layer_types: .*2 layers"),
    ("qwen2-windows-untied", {"layer_types": ["full", "full"]}, "layer_types: .*found 'full'"),
    ("qwen2-windows-untied", {"layer_types": "full"}, "layer_types: .*found 'full'"),
    ("qwen2-windows-untied", {"layer_types": [["full_attention"], 3]}, "layer_types: .*found"),
    ("qwen2-yarn-old-spelling", {"rope_scaling": {"type": "yarn"}}, "factor: .*found None"),
    ("qwen3-norms", {"head_dim": 0}, "head_dim: .*found 0"),
    ("qwen3_moe-normalized", {"num_experts_per_tok": 7}, "num_experts_per_tok: .*the 6 experts"),
    ("qwen3_moe-normalized", {"num_experts": 8}, "num_local_experts: .*8, as num_experts, found 6"),
    ("qwen3_moe-normalized", {"moe_intermediate_size": 0}, "moe_intermediate_size: .*found 0"),
    ("qwen3_moe-normalized", {"norm_topk_prob": "yes"}, "norm_topk_prob: .*true or false"),
    ("qwen3_moe-some-layers", {"decoder_sparse_step": 0}, "decoder_sparse_step: .*found 0"),
    ("qwen3_moe-some-layers", {"mlp_only_layers": 3}, "mlp_only_layers: .*a list.*found 3"),
    ("qwen3_moe-some-layers", {"mlp_only_layers": [-1]}, "mlp_only_layers: .*found -1"),
    ("gemma2-caps", {"sliding_window": None}, "sliding_window: .*a window, for layers with"),
    ("gemma2-caps", {"sliding_window": 0}, "sliding_window: .*found 0"),
    ("gemma2-caps", {"attn_logit_softcapping": 0}, "attn_logit_softcapping: .*positive.*found 0"),
    ("gemma2-caps", {"final_logit_softcapping": -3.0}, "final_logit_softcapping: .*found -3"),
    ("gemma2-caps", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: .*found 0"),
    ("gemma2-caps", {"use_bidirectional_attention": True}, "use_bidirectional_.*false, the only"),
    ("gemma2-caps", {"hidden_activation": "tanh"}, "hidden_activation: .*found 'tanh'"),
    ("gemma3_text-two-bases", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: .*null"),
    ("gemma3_text-two-bases", {"rope_parameters": GEMMA3_FLAT}, "rope_parameters: .*for each of"),
    (
        "gemma3_text-two-bases",
        {"rope_scaling": GEMMA3_FLAT},
        "rope_scaling: .*the same as rope_param",
    ),
    ("gemma3_text-old-spelling", {"rope_local_base_freq": -1.0}, "rope_theta: .*found -1"),
    ("gemma3_text-old-spelling", {"rope_scaling": {"rope_type": "linear"}}, "factor: .*None"),
    ("gemma3_text-old-spelling", {"sliding_window_pattern": 0}, "sliding_window_pattern: .*0"),
    ("phi3-window", {"sliding_window": 0}, "sliding_window: .*found 0"),
    ("phi3-window", {"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_type: .*phi3"),
    ("phi3-longrope-partial", {"rope_parameters": LONGROPE}, "short_factor: .*of 4.*found 3"),
    ("phi3-longrope-partial", {"original_max_position_embeddings": 64}, "original_.*128.*64"),
    ("phi3-longrope-partial", {"original_max_position_embeddings": 0}, "original_.*found 0"),
    ("starcoder2-window", {"norm_type": "rms_norm"}, "norm_type: .*layer_norm"),
    ("starcoder2-window", {"mlp_type": "gated"}, "mlp_type: .*default"),
    ("starcoder2-window", {"use_bias": None}, "use_bias: .*true or false"),
    ("stablelm-3b-form", {"partial_rotary_factor": 3}, "partial_rotary_factor: .*even number"),
    ("stablelm-3b-form", {"qk_layernorm": 1}, "qk_layernorm: .*true or false"),
    ("stablelm-3b-form", {"use_parallel_residual": "no"}, "use_parallel_residual: .*'no'"),
    ("olmo2-grouped", {"attention_bias": 0}, "attention_bias: .*true or false"),
    ("smollm3-no-rope", {"no_rope_layers": [1]}, "no_rope_layers: .*2 of 0 or 1"),
    ("smollm3-no-rope", {"no_rope_layers": [1, 2]}, "no_rope_layers: .*2 of 0 or 1"),
    ("smollm3-no-rope", {"no_rope_layer_interval": 0}, "no_rope_layer_interval: .*found 0"),
    ("smollm3-windows-biases", {"sliding_window": -64}, "sliding_window: .*found -64"),
    ("smollm3-windows-biases", {"sliding_window": None}, "sliding_window: .*a window, for"),
]


def values_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=str)
def test_an_impossible_value_is_refused_by_its_key(name, changes, message):
    values, path = values_of(name), Path("config.json")
    model_config(values, path)
    if "rope_parameters" in values and "partial_rotary_factor" in changes:
        del values["rope_parameters"]
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        model_config(values | changes, path)


def changed(path, name, values=None, change=lambda tensors: None):
    """A golden's directory, its config and its tensors changed."""
    directory = shutil.copytree(GOLDEN / name, path / name)
    (directory / "config.json").write_text(json.dumps(values_of(name) | (values or {})))
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    tensors = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


# golden, what its config says against its tensors, the tensor that tells
CONTRADICTED = [
    ("mistral-window", {"num_key_value_heads": 4}, r"k_proj.weight: wrong shape.*\[32, 32\]"),
    ("mistral-window", {"num_key_value_heads": None}, r"k_proj.weight: wrong shape.*\[32, 32\]"),
    ("mistral-window", {"num_attention_heads": 8}, r"q_proj.weight: wrong shape.*\[64, 32\]"),
    ("mistral-no-window-wide-heads", {"head_dim": 8}, r"q_proj.weight: wrong shape.*\[32, 32\]"),
    ("mistral-window", {"intermediate_size": 40}, r"gate_proj.weight: wrong shape.*\[40, 32\]"),
    ("mistral-window", {"num_hidden_layers": 1}, "layers.1.*is not a tensor of this model"),
    ("mistral-window", {"num_hidden_layers": 3}, "layers.2.*is missing"),
    ("mistral-window", {"vocab_size": 255}, r"embed_tokens.weight: wrong shape.*\[255, 32\]"),
    ("mixtral-two-of-four", {"num_local_experts": 5}, "layers.0.*experts.4.w1.weight: is missing"),
    ("mixtral-two-of-four", {"num_local_experts": 3}, "experts.3.*is not a tensor of this"),
    ("mixtral-two-of-four", {"intermediate_size": 16}, r"w1.weight: wrong shape.*\[16, 32\]"),
    ("qwen3_moe-normalized", {"moe_intermediate_size": 8}, r"gate_proj.weight: wrong.*\[8, 32\]"),
    ("qwen3_moe-normalized", {"mlp_only_layers": [0]}, "layers.0.mlp.gate_proj.weight: is miss"),
    ("qwen3_moe-some-layers", {"mlp_only_layers": []}, r"layers.3.mlp.*is missing"),
    ("qwen2-biases", {"model_type": "llama"}, "_proj.bias: is not a tensor of this model"),
    ("qwen3-norms", {"attention_bias": True}, "q_proj.bias: is missing"),
    ("qwen3-norms", {"head_dim": 8}, r"q_proj.weight: wrong shape.*\[32, 32\], found \[64, 32\]"),
    ("stablelm-3b-form", {"qk_layernorm": True}, "q_layernorm.norms.0.weight: is missing"),
    ("stablelm-12b-form", {"use_parallel_residual": False}, "post_attention_layernorm.*missing"),
    ("stablelm-3b-form", {"use_parallel_residual": True}, "post_attention_layernorm.*is not a"),
    ("starcoder2-window", {"use_bias": False}, "bias: is not a tensor of this model"),
    ("mistral-window", {"tie_word_embeddings": True}, "lm_head.weight: bad value.*the embedding"),
    ("qwen2-biases", {"tie_word_embeddings": False}, "lm_head.weight: is missing"),
]


@pytest.mark.parametrize(("name", "values", "message"), CONTRADICTED, ids=str)
def test_a_config_against_its_tensors_is_refused(name, values, message, tmp_path):
    path = changed(tmp_path, name, values)
    with pytest.raises(CheckpointError, match=message):
        load_everything(path)


def load_everything(path):
    checkpoint = open_checkpoint(path)
    load_block(checkpoint, 0)
    load_weights(checkpoint)


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
QUERIES = "model.layers.1.self_attn.q_layernorm.norms.3.weight"
MISSING = [
    ("mixtral-two-of-four", EXPERT),
    ("mixtral-two-of-four", "model.layers.0.block_sparse_moe.gate.weight"),
    ("qwen3_moe-normalized", "model.layers.0.mlp.experts.5.down_proj.weight"),
    ("qwen3-norms", "model.layers.1.self_attn.k_norm.weight"),
    ("stablelm-12b-form", QUERIES),
    ("gemma2-caps", "model.layers.0.pre_feedforward_layernorm.weight"),
    ("phi3-window", "model.layers.0.mlp.gate_up_proj.weight"),
]


@pytest.mark.parametrize(("name", "tensor"), MISSING)
def test_a_missing_tensor_is_refused_by_its_name(name, tensor, tmp_path):
    directory = changed(tmp_path, name, change=lambda tensors: tensors.pop(tensor))
    with pytest.raises(CheckpointError, match=f"{tensor}: is missing"):
        open_checkpoint(directory)


WRONG = [
    ("mixtral-two-of-four", EXPERT, (24, 32)),
    ("phi3-window", "model.layers.1.self_attn.qkv_proj.weight", (64, 32)),
    ("phi3-window", "model.layers.1.mlp.gate_up_proj.weight", (96, 32)),
    ("olmo2-grouped", "model.layers.1.self_attn.k_norm.weight", (16,)),
    ("stablelm-12b-form", QUERIES, (8,)),
]


@pytest.mark.parametrize(("name", "tensor", "shape"), WRONG)
def test_a_tensor_of_the_wrong_width_is_refused_by_its_name(name, tensor, shape, tmp_path):
    def cut(tensors):
        assert tensors[tensor].shape == shape
        tensors[tensor] = tensors[tensor][:-1]

    checkpoint = open_checkpoint(changed(tmp_path, name, change=cut))
    with pytest.raises(CheckpointError, match=f"{tensor}: wrong shape"):
        load_block(checkpoint, 1)


def test_an_expert_that_is_not_finite_is_refused(tmp_path):
    def poke(tensors):
        tensors[EXPERT][3, 1] = np.nan

    checkpoint = open_checkpoint(changed(tmp_path, "mixtral-two-of-four", change=poke))
    with pytest.raises(CheckpointError, match=rf"{EXPERT}: bad value; .*nan at \(3, 1\)"):
        load_block(checkpoint, 1)
