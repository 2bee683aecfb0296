"""Tiny models made on the spot: random weights, a byte-level tokenizer of one token per byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "dtype": "float32",
}


def make_llama(directory: Path, name: str = "tiny", seed: int = 0, **changes: Any) -> Path:
    """Write a random Llama into directory / name; `changes` are keys of its config.json.

    Its tokenizer has one token per byte, so a text of n ASCII characters has n tokens.
    """
    config, path = {**LLAMA, **changes}, directory / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(llama_tensors(config, seed), path / "model.safetensors", {"format": "pt"})
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


def llama_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names; norms around one, logits a few units wide."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in llama_shapes(config).items():
        scale = 0.1 if len(shape) == 1 else 1 / np.sqrt(shape[-1])
        noise = scale * rng.standard_normal(shape)
        tensors[name] = (noise + (len(shape) == 1)).astype(np.float32)
    return tensors


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a Llama of this config."""
    width, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    head = config.get("head_dim") or width // config["num_attention_heads"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    block = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (query, width),
        "self_attn.k_proj": (key, width),
        "self_attn.v_proj": (key, width),
        "self_attn.o_proj": (width, query),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in block.items()}
    shapes["model.norm.weight"] = (width,)
    return shapes if config["tie_word_embeddings"] else {**shapes, "lm_head.weight": (vocab, width)}


def byte_tokenizer() -> Tokenizer:
    """256 bytes, then <s> = 256 and </s> = 257; nothing is merged and nothing put before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer
