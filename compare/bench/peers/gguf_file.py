"""A GGUF file of a Llama with random weights: every linear and the head in one format ("pure").

A block is 32 inputs of one row, a float16 scale d and then the codes:

    Q4_0  18 bytes  w = (q - 8) d   byte i holds input i in its low and i + 16 in its high nibble
    Q8_0  34 bytes  w = q d         one signed byte per input

llama.cpp rotates neighbouring pairs (2i, 2i + 1) of a head where Hugging Face rotates halves
(i, i + Hd/2), so the rows of q and k are permuted, as its converter does. The file has no
vocabulary: the input is token ids and the output logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from planish.compare.bench.peers import weights
from planish.compare.bench.sizes import ModelSize

BLOCK = 32
BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34}
BITS = {"Q4_0": 4, "Q8_0": 8}
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


def write(path: Path, sizes: ModelSize, form: str) -> None:
    """Write the file, tensor by tensor; only one quantized tensor is in memory at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    add_sizes(writer, sizes)
    for name, size in list_linears(sizes):
        row = size[1] // BLOCK * BLOCK_BYTES[form]
        kind = GGMLQuantizationType[form]
        dtype = np.dtype(np.uint8)
        writer.add_tensor_info(name, (size[0], row), dtype, size[0] * row, kind)
    plain = {"token_embd.weight": weights.make_embedding(sizes)} | make_norms(sizes)
    for name, array in plain.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in (*pack_linears(sizes, form), *plain.values()):
        writer.write_tensor_data(array)
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, sizes: ModelSize) -> None:
    writer.add_vocab_size(sizes.vocab)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(weights.THETA)
    writer.add_layer_norm_rms_eps(weights.EPS)
    writer.add_tokenizer_model("no_vocab")


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
    pack = {"Q4_0": pack_q4_0, "Q8_0": pack_q8_0}[form]
    heads = {"q": sizes.heads, "k": sizes.kv_heads}
    for part, _, rows in weights.make_linears(sizes, BITS[form], pack):
        yield interleave(rows, heads[part]) if part in heads else rows


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows 0, Hd/2, 1, Hd/2 + 1, ... of each head: halves become neighbours."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def pack_q4_0(codes: np.ndarray) -> np.ndarray:
    blocks = codes.reshape(len(codes), -1, 2, BLOCK // 2)
    return add_scales(blocks[:, :, 0] | blocks[:, :, 1] << 4, codes.shape[1], 4)


def pack_q8_0(codes: np.ndarray) -> np.ndarray:
    return add_scales(codes.view(np.uint8).reshape(len(codes), -1, BLOCK), codes.shape[1], 8)


def add_scales(blocks: np.ndarray, inputs: int, bits: int) -> np.ndarray:
    """d before the codes of each block: [outputs, blocks, bytes] -> [outputs, row bytes]."""
    d = np.array([weights.scale(inputs, bits)]).view(np.uint8)
    d = np.broadcast_to(d, (*blocks.shape[:2], 2))
    return np.concatenate([d, blocks], axis=2).reshape(len(blocks), -1)
