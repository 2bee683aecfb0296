"""A GGUF file of llama.cpp as a model directory: config, tensors under the architecture's names.

The config is rebuilt from the file's keys, or is the config.json beside the file. Every tensor has
a type of its own. Embeddings and a tied lm_head are read as floats. For `llama` the converter
interleaves the rows of q and k, two halves of each head; codes and scales move with their rows, so
this is undone without loss:

    file = w.reshape(heads, 2, d / 2, K).swapaxes(1, 2)    heads of keys for k

Source: llama.cpp, conversion/*.py and gguf-py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.reference.errors import CheckpointError, ConfigError
from planish.reference.files.entries import Declared
from planish.reference.files.formats.gguf_blocks import TYPES, Blocks
from planish.reference.files.formats.stored import Source, Stored, choose_scheme, planish_entries
from planish.reference.files.formats.translate import Origin
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
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # general.architecture = model_type of the config
INTERLEAVED = ("llama",)
WITH_CONFIG = "put the model's config.json and tokenizer.json beside the file"


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How many heads q and k have if their rows are interleaved, else None."""

    q: int | None = None
    k: int | None = None


def architecture(file: GgufFile) -> str:
    """general.architecture; ConfigError for one whose names are not in the tables."""
    found = file.keys.get("general.architecture")
    if found not in ARCHITECTURES:
        raise ConfigError(
            "cannot be read",
            path=file.path,
            name="general.architecture",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            found=repr(found),
        )
    return str(found)


def rebuild_config(file: GgufFile) -> dict[str, Any]:
    """config.json from the keys; ConfigError for what they cannot say or planish cannot compute."""
    name = architecture(file)
    _refuse_unknown(file, name)
    heads = _count(file, f"{name}.attention.head_count")
    hidden = _count(file, f"{name}.embedding_length")
    head_dim = _count(file, f"{name}.attention.key_length", hidden // max(heads, 1))
    values: dict[str, Any] = {
        "model_type": name,
        "hidden_size": hidden,
        "intermediate_size": _count(file, f"{name}.feed_forward_length"),
        "num_hidden_layers": _count(file, f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(file, f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _decimal(file, f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_theta": _decimal(file, f"{name}.rope.freq_base", 10000.0),
        "max_position_embeddings": _count(file, f"{name}.context_length"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": file.keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.keys.get("tokenizer.ggml.eos_token_id"),
    }
    scaling = file.keys.get(f"{name}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = _decimal(file, f"{name}.rope.scaling.factor")
        values["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise _needs_config(file, f"{name}.rope.scaling.type", repr(scaling))
    return values


def _refuse_unknown(file: GgufFile, name: str) -> None:
    """Refuse what the config would have to say and the keys do not, or say in another way."""
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError("is missing", path=file.path, name="token_embd.weight")
    if "rope_freqs.weight" in file.tensors:
        raise _needs_config(file, "rope_freqs.weight", "rope scaling as a tensor of factors")
    if file.keys.get(f"{name}.expert_count"):
        raise _needs_config(file, f"{name}.expert_count", "a mixture of experts")
    rotary, width = (f"{name}.rope.dimension_count", f"{name}.attention.key_length")
    found = file.keys.get(rotary)
    if found is not None and width in file.keys and found != file.keys[width]:
        raise _needs_config(file, rotary, f"{found} of {file.keys[width]} channels")


def _needs_config(file: GgufFile, name: str, found: str) -> ConfigError:
    problem = "is not enough to rebuild config.json"
    return ConfigError(problem, path=file.path, name=name, expected=WITH_CONFIG, found=found)


def _count(file: GgufFile, name: str, default: int | None = None) -> int:
    found = file.keys.get(name, default)
    if type(found) is not int or not 0 < found < 2**31:
        expected = "a number above 0"
        raise ConfigError(
            "bad value", path=file.path, name=name, expected=expected, found=repr(found)
        )
    return found


def _decimal(file: GgufFile, name: str, default: float | None = None) -> float:
    """A float32 as the shortest decimal that means it: 9.999999747e-06 is 1e-05."""
    found = file.keys.get(name, default)
    if not isinstance(found, float):
        raise ConfigError(
            "bad value", path=file.path, name=name, expected="a float", found=repr(found)
        )
    return float(str(np.float32(found)))


def plain_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; others as they are."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    words = stem.split(".")
    if len(words) == 3 and words[0] == "blk" and words[2] in PARTS:
        return f"model.layers.{words[1]}.{PARTS[words[2]]}.{kind}"
    return name


def translate_gguf(
    file: GgufFile, heads: tuple[int, int]
) -> tuple[dict[str, TensorEntry], Declared | None, Origin]:
    """The tensors under the architecture's names, as planish stores them. heads: of q and k."""
    interleaved = file.keys.get("general.architecture") in INTERLEAVED
    source = Source(path=file.path, values={}, entries={})
    entries, targets, sizes = dict[str, TensorEntry](), dict[str, Scheme](), dict[str, int]()
    for name, tensor in file.tensors.items():
        plain = plain_name(name)
        if plain == "rope_freqs.weight":  # config.json says the same
            continue
        count = heads["k_proj" in plain] if interleaved and _is_rotated(plain) else None
        rows = None if count is None else _half_split(file, name, tensor.shape[0], count)
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
    declared = Declared(layout="canonical", targets=targets) if targets else None
    return entries, declared, Origin(format="gguf", made_by=_made_by(file.keys), bytes=sizes)


def _made_by(keys: Mapping[str, Any]) -> str:
    return f"llama.cpp, {keys.get('general.name', 'a model without a name')}"


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

    if name == "model.embed_tokens.weight":
        return Stored(shape=(count, cols), codes=weights)
    fields = {"bits": how.bits, "granularity": "per_group", "group_size": how.group_size}
    fields |= {"scale_dtype": how.scale_dtype}
    fields |= {"symmetric": False, "offset": True} if how.offset else {}
    return Stored(
        scheme=choose_scheme(source, name, **fields),
        shape=(count, cols),
        codes=lambda: decode().codes,
        scale=lambda: decode().scale,
        offset=(lambda: _offset(decode())) if how.offset else None,
    )


def _offset(blocks: Blocks) -> np.ndarray:
    assert blocks.offset is not None
    return blocks.offset


def _blocks(tensor: GgufTensor) -> int:
    """How many blocks a row has."""
    return tensor.shape[1] // (256 if tensor.type.endswith("_K") else 32)
