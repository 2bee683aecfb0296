"""Configs of a graph that the transformer lacks, and fused tensors that do not fit their config."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.architectures import model_config
from planish.reference.errors import CheckpointError, ConfigError
from planish.reference.files.load import load_block, open_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"

REFUSED = [
    ("bloom-tied", "apply_residual_connection_post_layernorm", True, "expected false.*True"),
    ("bloom-tied", "n_head", 5, "hidden_size: bad value; .*multiple of 5 heads, found 32"),
    ("bloom-tied", "num_attention_heads", 8, "4, as n_head, found 8"),
    ("gpt2-megatron", "add_cross_attention", True, "expected false.*found True"),
    ("gpt2-megatron", "activation_function", "tanh", "one of relu.*found 'tanh'"),
    ("gpt2-megatron", "scale_attn_weights", 1, "true or false, found 1"),
    ("gpt_bigcode-multi-query", "add_cross_attention", True, "expected false"),
    ("gpt_bigcode-multi-query", "multi_query", "no", "true or false, found 'no'"),
    ("falcon-40b-form", "num_kv_heads", 3, "divisor of 4 attention heads, found 3"),
    ("falcon-40b-form", "parallel_attn", False, "true, in the new architecture, found False"),
    ("falcon-40b-form", "num_ln_in_parallel_attn", 3, "expected 1, or 2.*found 3"),
    ("falcon-7b-form", "num_ln_in_parallel_attn", 2, "2 in the new architecture, found 2"),
    ("falcon-rw-form", "num_kv_heads", 2, "expected 4.*found 2"),
    ("gptj-whole-rotary", "rotary_dim", 18, "even number in 2..16, for rotary pairs, found 18"),
    ("gptj-whole-rotary", "rotary_dim", 7, "even number.*found 7"),
    ("gptj-whole-rotary", "tie_word_embeddings", True, "expected false"),
    ("gpt_neox-old-spelling", "rotary_pct", 1.5, "partial_rotary_factor: bad value; .*found 24"),
    ("gpt_neox-old-spelling", "use_parallel_residual", 0, "true or false, found 0"),
    ("mpt-alibi", "no_bias", False, "expected true, .*found False"),
    ("mpt-alibi", "expansion_ratio", 2, "expected 4, .*found 2"),
    ("mpt-alibi", "logit_scale", "inv_sqrt_d_model", "expected null"),
    ("mpt-alibi", "norm_type", "rmsnorm", "one of layernorm, .*found 'rmsnorm'"),
    ("mpt-alibi", "attn_config", [1], "expected an object"),
    ("mpt-alibi", "attn_config.alibi", False, "expected true, .*found False"),
    ("mpt-alibi", "attn_config.qk_ln", True, "expected false"),
    ("mpt-alibi", "attn_config.prefix_lm", True, "expected false"),
    ("mpt-alibi", "attn_config.attn_type", "multiquery_attention", "multihead"),
    ("mpt-alibi", "attn_config.clip_qkv", -6, "positive.*found -6"),
    ("glm-grouped", "num_key_value_heads", 3, "divisor of 4 attention heads, found 3"),
    ("glm4-sandwich", "head_dim", 6, "partial_rotary_factor: bad value; .*an even number in 2..6"),
    ("chatglm-2", "rmsnorm", False, "expected true, .*found False"),
    ("chatglm-2", "post_layer_norm", False, "expected true"),
    ("chatglm-2", "multi_query_attention", False, "expected true"),
    ("chatglm-2", "apply_residual_connection_post_layernorm", True, "expected false"),
    ("chatglm-2", "tie_word_embeddings", True, "expected false"),
    ("chatglm-2", "quantization_bit", 4, "expected 0, .*found 4"),
    ("chatglm-2", "pre_seq_len", 128, "expected null, .*found 128"),
    ("chatglm-2", "multi_query_group_num", 3, "divisor of 4 attention heads"),
    ("chatglm-2", "kv_channels", 6, "multiple of 4, .*found 6"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), REFUSED)
def test_a_graph_that_the_transformer_lacks_is_refused_by_its_key(name, key, value, message):
    values, path = json.loads((GOLDEN / name / "config.json").read_text()), Path("config.json")
    model_config(values, path)
    outer, _, inner = key.partition(".")
    message = message if "bad value" in message else f"{inner or outer}: bad value; .*{message}"
    with pytest.raises(ConfigError, match=rf"config\.json: {message}"):
        model_config(values | {outer: {inner: value} if inner else value}, path)


FUSED = [
    ("bloom-tied", "transformer.h.1.self_attention.query_key_value.weight", 0),
    ("bloom-tied", "transformer.h.1.self_attention.query_key_value.bias", 0),
    ("falcon-7b-form", "transformer.h.1.self_attention.query_key_value.weight", 0),
    ("falcon-40b-form", "transformer.h.1.self_attention.query_key_value.weight", 0),
    ("gpt2-hub-prefix", "h.1.attn.c_attn.weight", 1),
    ("gpt2-hub-prefix", "h.1.mlp.c_fc.weight", 1),
    ("gpt_bigcode-multi-query", "transformer.h.1.attn.c_attn.weight", 0),
    ("mpt-alibi", "transformer.blocks.1.attn.Wqkv.weight", 0),
    ("glm-grouped", "model.layers.1.mlp.gate_up_proj.weight", 0),
    ("chatglm-2", "transformer.encoder.layers.1.self_attention.query_key_value.bias", 0),
    ("chatglm-2", "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight", 0),
]


def changed(path, name, change):
    """A golden's directory with one of its tensors changed, or removed."""
    directory = shutil.copytree(GOLDEN / name, path / name)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, directory / "model.safetensors"
    )
    return directory


@pytest.mark.parametrize(("name", "tensor", "axis"), FUSED)
@pytest.mark.parametrize("rows", [-1, 1])
def test_a_fused_tensor_of_the_wrong_width_is_refused_by_its_name(
    name, tensor, axis, rows, tmp_path
):
    def change(tensors):
        old = tensors[tensor]
        kept = np.delete(old, -1, axis) if rows < 0 else np.concatenate([old, old], axis)
        tensors[tensor] = kept

    checkpoint = open_checkpoint(changed(tmp_path, name, change))
    load_block(checkpoint, 0)
    with pytest.raises(CheckpointError, match=rf"{tensor}: wrong shape; expected \[.*found \["):
        load_block(checkpoint, 1)


@pytest.mark.parametrize(("name", "tensor", "axis"), FUSED)
def test_a_missing_fused_tensor_is_refused_by_its_name(name, tensor, axis, tmp_path):
    directory = changed(tmp_path, name, lambda tensors: tensors.pop(tensor))
    with pytest.raises(CheckpointError, match=f"{tensor}: is missing"):
        open_checkpoint(directory)


def test_one_norm_of_two_that_is_missing_is_refused(tmp_path):
    gone = "transformer.h.0.ln_mlp.weight"
    directory = changed(tmp_path, "falcon-40b-form", lambda tensors: tensors.pop(gone))
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0\..*is missing"):
        open_checkpoint(directory)


def test_tensors_that_an_architecture_does_not_have_are_refused(tmp_path):
    extra = {"transformer.h.0.attn.c_attn.q.scale": np.ones(3, np.float32)}
    directory = changed(tmp_path, "gpt2-megatron", lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=r"c_attn\.q\.scale: is not a tensor of this model"):
        open_checkpoint(directory)
