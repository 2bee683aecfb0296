"""Layouts that transformers does not read, or only by dropping tensors: made from one it wrote."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from variant import Tensors, Values

Converted = tuple[Values, Tensors]


def megatron_buffers(values: Values, tensors: Tensors) -> Converted:
    """The causal masks that the conversion of a Megatron checkpoint leaves in every layer."""
    masks = {"bias": torch.ones(1, 1, 2, 2).tril(), "masked_bias": torch.tensor(-1e4)}
    return values, tensors | {
        f"transformer.h.{i}.attn.{name}": mask.clone()
        for i in range(values["n_layer"])
        for name, mask in masks.items()
    }


def neox_buffers(values: Values, tensors: Tensors) -> Converted:
    """Masks and rotary frequencies, which older files hold."""
    buffers = {
        "bias": torch.ones(1, 1, 2, 2).tril().to(torch.bool),
        "masked_bias": torch.tensor(-1e9),
        "rotary_emb.inv_freq": torch.ones(4),
    }
    return values, tensors | {
        f"gpt_neox.layers.{i}.attention.{name}": buffer.clone()
        for i in range(values["num_hidden_layers"])
        for name, buffer in buffers.items()
    }


CHATGLM_NAMES = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
    "model.layers": "transformer.encoder.layers",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


def chatglm_layout(values: Values, tensors: Tensors) -> Converted:
    """GLM's graph as ChatGLM2's own code stores it: queries, keys and values in one tensor."""
    renamed: Tensors = {"transformer.rotary_pos_emb.inv_freq": torch.ones(2)}
    fused: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        for theirs, ours in CHATGLM_NAMES.items():
            name = name.replace(theirs, ours)
        start, _, end = name.partition(".self_attn.")
        if end:
            part, kind = end.split(".")
            fused.setdefault(f"{start}.self_attention.query_key_value.{kind}", {})[part] = tensor
        else:
            renamed[name] = tensor
    for name, parts in fused.items():
        renamed[name] = torch.cat([parts[f"{part}_proj"] for part in "qkv"])
    return chatglm_config(values), renamed


def chatglm_config(values: Values) -> Values:
    """The keys of configuration_chatglm.py."""
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "torch_dtype": values["dtype"],
        "num_layers": values["num_hidden_layers"],
        "padded_vocab_size": values["vocab_size"],
        "hidden_size": values["hidden_size"],
        "ffn_hidden_size": values["intermediate_size"],
        "kv_channels": values["head_dim"],
        "num_attention_heads": values["num_attention_heads"],
        "seq_length": values["max_position_embeddings"],
        "layernorm_epsilon": values["rms_norm_eps"],
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": values["attention_bias"],
        "multi_query_attention": True,
        "multi_query_group_num": values["num_key_value_heads"],
        "rope_ratio": values["rope_parameters"]["rope_theta"] / 1e4,
        "quantization_bit": 0,
        "pre_seq_len": None,
        "tie_word_embeddings": False,
        "eos_token_id": values["eos_token_id"],
    }


def alibi_as_configured(model: Any) -> None:
    """Pass on alibi_bias_max, as MosaicML's code does; MptModel builds its biases without it."""
    base, value = model.transformer, model.config.attn_config.alibi_bias_max
    base.build_mpt_alibi_tensor = partial(base.build_mpt_alibi_tensor, alibi_bias_max=value)
