"""A GGUF file of a Llama with random weights: every linear and the head in one format ("pure").

A block is 32 inputs of one row, a float16 scale d and then the codes:

    Q4_0  18 bytes  w = (q - 8) d   byte i holds input i in its low and i + 16 in its high nibble
    Q8_0  34 bytes  w = q d         one signed byte per input

llama.cpp rotates neighbouring pairs (2i, 2i + 1) of a head where Hugging Face rotates halves
(i, i + Hd/2), so the rows of q and k are permuted, as its converter does. Without a vocabulary the
input is token ids and the output logits; a server needs one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.bench.peers import weights
from planish.compare.bench.random_model import list_tokens
from planish.compare.bench.sizes import ModelSize
from planish.reference.files.export.gguf_blocks import encode_q4_0, encode_q8_0
from planish.reference.files.export.gguf_container import BLOCKS, Part, write_container
from planish.reference.files.formats.gguf import interleaved_rows

BITS = {"Q4_0": 4, "Q8_0": 8}
NORMAL = 1  # the type of a token
NO_VOCABULARY = {"tokenizer.ggml.model": "no_vocab"}  # the input is token ids
CONTEXT = 8192
NAMES = {
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "head": "output.weight",
}


def write(
    path: Path, sizes: ModelSize, form: str, vocabulary: Mapping[str, Any] = NO_VOCABULARY
) -> None:
    """Write the file, tensor by tensor; only one quantized tensor is in memory at a time."""
    packed = pack_linears(sizes, form)  # in the order of the parts, each made when it is written
    parts = {
        name: Part(type=form, shape=size, read=partial(next, packed))
        for name, size in list_linears(sizes)
    }
    plain = {"token_embd.weight": weights.make_embedding(sizes)} | make_norms(sizes)
    for name, array in plain.items():
        kind = "F16" if array.dtype == np.float16 else "F32"
        parts[name] = Part(type=kind, shape=array.shape, read=partial(np.asarray, array))
    with path.open("wb") as file:
        write_container(file, {**model_keys(sizes), **vocabulary}, parts)


def block_bits(form: str) -> float:
    """Bits of a weight, the scales of blocks among them."""
    weights_in_block, size = BLOCKS[form]
    return size * 8 / weights_in_block


def model_keys(sizes: ModelSize) -> dict[str, Any]:
    values = {
        "vocab_size": sizes.vocab,
        "context_length": CONTEXT,
        "embedding_length": sizes.hidden,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.ffn,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "rope.dimension_count": sizes.head_dim,
        "rope.freq_base": weights.THETA,
        "attention.layer_norm_rms_epsilon": weights.EPS,
    }
    keys = {f"llama.{name}": value for name, value in values.items()}
    return {"general.architecture": "llama", **keys}


def word_vocabulary(vocab: int) -> dict[str, Any]:
    """The keys of a vocabulary of bytes and words, for what takes texts.

    llama.cpp takes id 11 for the end of a text unless the file names another."""
    tokens = list_tokens(vocab)
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [NORMAL] * len(tokens),
        "merges": ["! !"],  # of a pair that no prompt has; without any the file is refused
        "eos_token_id": len(tokens) - 1,
        "bos_token_id": len(tokens) - 1,
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def list_linears(sizes: ModelSize) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and (outputs, inputs) of all linears, in the order of `weights.make_linears`."""
    for part, size in weights.list_linear_sizes(sizes).items():
        for layer in range(sizes.layers):
            yield NAMES[part].format(layer), size
    yield NAMES["head"], (sizes.vocab, sizes.hidden)


def make_norms(sizes: ModelSize) -> dict[str, np.ndarray]:
    ones = np.ones(sizes.hidden, np.float32)
    prefixes = [f"blk.{i}.{which}_norm" for i in range(sizes.layers) for which in ("attn", "ffn")]
    return {f"{prefix}.weight": ones for prefix in (*prefixes, "output_norm")}


def pack_linears(sizes: ModelSize, form: str) -> Iterator[np.ndarray]:
    """The rows of blocks of every linear, uint8."""
    encode, bits = {"Q4_0": encode_q4_0, "Q8_0": encode_q8_0}[form], BITS[form]
    heads = {"q": sizes.heads, "k": sizes.kv_heads}

    def pack(codes: np.ndarray) -> np.ndarray:
        scale = weights.scale(codes.shape[1], bits)
        return encode(codes, np.full((len(codes), codes.shape[1] // 32), scale))

    for part, _, rows in weights.make_linears(sizes, bits, pack):
        yield rows[interleaved_rows(len(rows), heads[part])] if part in heads else rows
