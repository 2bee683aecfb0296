"""A GGUF file of llama.cpp as a model directory: config, tensors under the architecture's names.

The config is rebuilt from the file's keys, or is the config.json beside the file. Every tensor has
a type of its own. Embeddings keep their codes, which lm_head has, too, if it is tied to them.
For `llama` the converter interleaves the rows of q and k, two halves of each head; codes and scales
move with their rows, so this is undone without loss:

    file = w.reshape(heads, 2, d / 2, K).swapaxes(1, 2)    heads of keys for k

Source: llama.cpp, conversion/*.py and gguf-py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from planish.reference.errors import CheckpointError
from planish.reference.files.entries import Declared
from planish.reference.files.formats.gguf_blocks import TYPES, Blocks
from planish.reference.files.formats.stored import Source, Stored, choose_scheme, planish_entries
from planish.reference.files.formats.translate import Origin, add_tied_head
from planish.reference.files.safetensors import TensorEntry
from planish.reference.gguf import GgufFile, GgufTensor
from planish.reference.grids import expand_groups
from planish.reference.scheme import Scheme

FLOATS = ("F32", "F16", "BF16")
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MIXTRAL, QWEN3 = "block_sparse_moe", "mlp"
EXPERTS = {  # by general.architecture; {e} is the place on the first axis
    "llama": {
        "ffn_gate_inp": f"{MIXTRAL}.gate",
        "ffn_gate_exps": f"{MIXTRAL}.experts.{{e}}.w1",
        "ffn_up_exps": f"{MIXTRAL}.experts.{{e}}.w3",
        "ffn_down_exps": f"{MIXTRAL}.experts.{{e}}.w2",
    },
    "qwen3moe": {
        "ffn_gate_inp": f"{QWEN3}.gate",
        "ffn_gate_exps": f"{QWEN3}.experts.{{e}}.gate_proj",
        "ffn_up_exps": f"{QWEN3}.experts.{{e}}.up_proj",
        "ffn_down_exps": f"{QWEN3}.experts.{{e}}.down_proj",
    },
}
INTERLEAVED = ("llama",)


def plain_name(name: str, architecture: object) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; others as they are.

    The name of stacked experts has {e} for the number of one.
    """
    parts = PARTS | EXPERTS.get(str(architecture), {})
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    words = stem.split(".")
    if len(words) == 3 and words[0] == "blk" and words[2] in parts:
        return f"model.layers.{words[1]}.{parts[words[2]]}.{kind}"
    return name


def plain_tensors(file: GgufFile) -> Iterator[tuple[str, GgufTensor]]:
    """The tensors under the architecture's names, experts one by one."""
    kind = file.keys.get("general.architecture")
    for name, tensor in file.tensors.items():
        plain = plain_name(name, kind)
        if "{e}" not in plain:
            yield plain, tensor
            continue
        if len(tensor.shape) != 3:
            expected, found = "[experts, outputs, inputs]", list(tensor.shape)
            raise CheckpointError(
                "wrong shape", path=file.path, name=name, expected=expected, found=found
            )
        for number, data in enumerate(tensor.data.reshape(tensor.shape[0], -1)):
            one = GgufTensor(type=tensor.type, shape=tensor.shape[1:], data=data)
            yield plain.format(e=number), one


def translate_gguf(
    file: GgufFile, heads: tuple[int, int], tied: bool
) -> tuple[dict[str, TensorEntry], Declared | None, Origin]:
    """The tensors under the architecture's names, as planish stores them.

    heads: of q and k. tied: whether lm_head is the embedding, by the config.
    """
    interleaved = file.keys.get("general.architecture") in INTERLEAVED
    tied = tied and "output.weight" not in file.tensors
    source = Source(path=file.path, values={}, entries={}, tied_head="lm_head" if tied else None)
    head: Stored | None = None
    entries, targets, sizes = dict[str, TensorEntry](), dict[str, Scheme](), dict[str, int]()
    for plain, tensor in plain_tensors(file):
        if plain == "rope_freqs.weight":  # config.json says the same
            continue
        count = heads["k_proj" in plain] if interleaved and _is_rotated(plain) else None
        rows = None if count is None else _half_split(file, plain, tensor.shape[0], count)
        prefix = plain.rpartition(".")[0]
        stored = _read_tensor(source, plain, tensor, rows)
        if isinstance(stored, TensorEntry):
            entries[plain] = stored
            continue
        sizes[prefix] = tensor.data.size
        made = planish_entries(file.path, stored)
        entries |= {f"{prefix}.{part}": entry for part, entry in made.items()}
        if stored.scheme is not None:
            targets[prefix] = stored.scheme
        head = stored.head or head
    if head is not None:
        add_tied_head(source, head, entries, targets)
    declared = Declared(layout="canonical", targets=targets) if targets else None
    return entries, declared, Origin(format="gguf", made_by=_made_by(file.keys), bytes=sizes)


def _made_by(keys: Mapping[str, Any]) -> str:
    program = keys.get("general.quantized_by", "llama.cpp")
    return f"{program}, {keys.get('general.name', 'a model without a name')}"


def _is_rotated(name: str) -> bool:
    return ".q_proj." in name or ".k_proj." in name


def _half_split(file: GgufFile, name: str, rows: int, heads: int) -> np.ndarray:
    """The row of the file for each row of the model, int [N]."""
    if rows % (2 * heads):
        expected = f"a multiple of {2 * heads} rows"
        raise CheckpointError(
            "wrong shape", path=file.path, name=name, expected=expected, found=rows
        )
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def interleaved_rows(rows: int, heads: int) -> np.ndarray:
    """The row of the model for each row of the file, int [N]: the inverse of _half_split."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _read_tensor(
    source: Source, name: str, tensor: GgufTensor, rows: np.ndarray | None
) -> Stored | TensorEntry:
    """A float tensor as it is, or what a quantized one holds; `rows` reorders its rows."""
    if tensor.type in FLOATS:
        size = tensor.data.size
        data = tensor.data
        if rows is not None:
            data = data.reshape(tensor.shape[0], -1)[rows].reshape(-1)
        return TensorEntry(source.path, tensor.type, tensor.shape, 0, size, data)
    if len(tensor.shape) != 2 or not name.endswith(".weight"):
        expected, found = "a matrix", f"{tensor.type} {list(tensor.shape)}"
        raise source.refuse(name, "cannot be read", expected, found)
    count, cols = tensor.shape
    how = TYPES[tensor.type]

    def decode() -> Blocks:
        raw = tensor.data.reshape(count, -1)
        raw = raw if rows is None else raw[rows]
        return how.decode(raw.reshape(count, _blocks(tensor), -1))

    def weights() -> np.ndarray:
        found = decode()
        zero = 8 if tensor.type == "Q4_0" else 0
        codes = found.codes.astype(np.float32) - np.float32(zero)
        w = codes * expand_groups(found.scale.astype(np.float32), cols, how.group_size)
        if found.offset is None:
            product: np.ndarray = w
            return product
        added: np.ndarray = w + expand_groups(found.offset, cols, how.group_size)
        return added

    fields = {"bits": how.bits, "granularity": "per_group", "group_size": how.group_size}
    fields |= {"scale_dtype": how.scale_dtype}
    fields |= {"symmetric": False, "offset": True} if how.offset else {}
    linear = Stored(
        scheme=choose_scheme(source, name, **fields),
        shape=(count, cols),
        codes=lambda: decode().codes,
        scale=lambda: decode().scale,
        offset=(lambda: _offset(decode())) if how.offset else None,
    )
    if name == "model.embed_tokens.weight":
        return Stored(shape=(count, cols), codes=weights, head=linear)
    return linear


def _offset(blocks: Blocks) -> np.ndarray:
    assert blocks.offset is not None
    return blocks.offset


def _blocks(tensor: GgufTensor) -> int:
    """How many blocks a row has."""
    return tensor.shape[1] // (256 if tensor.type.endswith("_K") else 32)
