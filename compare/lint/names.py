"""Rules of names: tensors that are unknown, unused or missing, biases of zeros, routers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import numpy as np

from planish.compare.lint.fused import OF_VLLM
from planish.compare.lint.opened import GGUF, OWN, Opened
from planish.compare.lint.rules import Finding
from planish.reference.files.checkpoint import Checkpoint, can_be_quantized
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats import READERS
from planish.reference.files.formats.gguf import plain_name
from planish.reference.files.formats.gguf_config import ARCHITECTURES
from planish.reference.files.formats.mlx import EMBEDDINGS
from planish.reference.files.names import is_unused
from planish.reference.files.safetensors import TensorEntry
from planish.reference.model.shapes import block_kinds, outer_kinds
from planish.reference.model.weights import split_expert

OWN_KINDS = (
    *("weight_scale", "weight_zero_point", "weight_offset", "weight_permutation"),
    "input_scale",
)
WEIGHTS = ("weight", "qweight", "weight_packed", "_weight_qdata")  # one of them is the codes
ROUTER = re.compile(r"(.*\.)?((mlp|block_sparse_moe|feed_forward|moe)\.(gate|router)|ffn_gate_inp)")
ROPE_FACTORS = "rope_freqs"  # of GGUF
AT_ONCE = 2**22  # numbers that are checked together


def check_names(opened: Opened) -> Iterator[Finding]:
    """Findings of names that a reader does not expect, or does not find."""
    if opened.format != OWN:
        yield from (Finding(rule="tensor-padding", where=name) for name in opened.padding)
    if opened.format == GGUF:
        yield from check_gguf_names(opened)
    elif opened.model is None:
        yield Finding(rule="model-unknown", where="config.json", detail=opened.problem)
    else:
        yield from check_model_names(opened, opened.model)


def check_gguf_names(opened: Opened) -> Iterator[Finding]:
    """Tensors of a GGUF file whose names planish does not know."""
    assert opened.gguf is not None
    found = opened.gguf.keys.get("general.architecture")
    if found not in ARCHITECTURES:
        where, detail = "general.architecture", f"the architecture {found!r}"
        yield Finding(rule="model-unknown", where=where, detail=detail)
        return
    for name in opened.gguf.tensors:
        if plain_name(name, found) == name and not name.startswith(ROPE_FACTORS):
            yield Finding(rule="tensor-unread", where=name)


def check_model_names(opened: Opened, model: Checkpoint) -> Iterator[Finding]:
    """Tensors that this architecture does not have, and those that it lacks."""
    known, missing = set[str](), list[str]()
    kinds = READERS[opened.format].KINDS if opened.format in READERS else OWN_KINDS
    for part, layer, has in modules(model):
        names, own = module_names(model, part, layer), set(has)
        quantized = kinds if can_be_quantized(part) or part == "embed" else ()
        known |= {f"{name}.{kind}" for name in names for kind in ("weight", *has, *quantized)}
        every = {name for name in names for kind in WEIGHTS if f"{name}.{kind}" in model.entries}
        optional = part == "head" and model.config.tie_embeddings
        if "weight" in own and not every and not optional:
            missing.append(f"{names[0]}.weight")
    for name, entry in model.entries.items():
        if name not in known:
            yield from judge_unknown(opened, model, name, entry)
    for name in dict.fromkeys([*missing, *opened.absent]):
        if name not in model.entries:
            yield Finding(rule="tensor-missing", where=name)


def modules(model: Checkpoint) -> Iterator[tuple[str, int | None, tuple[str, ...]]]:
    """Every module of the model: its part, its layer, and whether it has a weight and a bias."""
    for part, kinds in outer_kinds(model.config).items():
        yield part, None, kinds
    for layer in range(model.config.num_layers):
        for part, kinds in block_kinds(model.config, layer).items():
            yield part, layer, kinds


def module_names(model: Checkpoint, part: str, layer: int | None) -> list[str]:
    """All names under which files may store a module: the source's, others', planish's."""
    (general, expert), config = split_expert(part), model.config
    tensor = model.architecture.tensor(general)
    heads = range(max(config.num_heads, config.num_kv_heads)) if "{h}" in tensor.name else (0,)
    patterns = [tensor.name, *tensor.also]
    patterns += [name.replace(".{e}", "") for name in patterns]
    names = [name.format(i=layer, e=expert, h=h) for name in patterns for h in heads]
    names = [name.removeprefix(model.left_off) for name in names]
    own = [model.prefix(part, layer), model.prefix(general, layer)]
    return list(dict.fromkeys([*names, *own]))


def judge_unknown(
    opened: Opened, model: Checkpoint, name: str, entry: TensorEntry
) -> Iterator[Finding]:
    """What a tensor is that the architecture does not have."""
    prefix, _, kind = name.rpartition(".")
    if is_unused(name, model.architecture, entry):
        if not (opened.format == OWN and kind in ("q_scale", "k_scale", "v_scale")):
            yield Finding(rule="tensor-unused", where=name)
    elif ROUTER.fullmatch(prefix):
        return  # a quantized router has a row of its own
    elif kind == "bias" and entry.dtype in FLOATS and has_weight(model, prefix):
        rule = "bias-unexpected" if entry.map().any() else "bias-zero"
        yield Finding(rule=rule, where=name)
    else:
        yield Finding(rule="tensor-unknown", where=name)


def has_weight(model: Checkpoint, prefix: str) -> bool:
    return any(f"{prefix}.{kind}" in model.entries for kind in WEIGHTS)


def check_routers(opened: Opened, prefixes: Iterable[str]) -> Iterator[Finding]:
    """Routers of experts among the quantized linears: mlx-lm quantizes them, and reads them."""
    rule = "router-quantized" if opened.format in OF_VLLM else "router-unread"
    for prefix in prefixes:
        if ROUTER.fullmatch(prefix):
            yield Finding(rule=rule, where=prefix)


def check_floats(opened: Opened, prefixes: set[str]) -> Iterator[Finding]:
    """Float tensors with NaN or infinite numbers, those of quantized linears left out."""
    for name, entry in float_entries(opened).items():
        prefix, _, kind = name.rpartition(".")
        if prefix in prefixes and kind != "bias":
            continue
        if bad := count_not_finite(entry.map()):
            embedding = prefix.rpartition(".")[2] in EMBEDDINGS
            rule = "embedding-not-finite" if embedding else "tensor-not-finite"
            yield Finding(rule=rule, where=name, count=bad, total=math.prod(entry.shape))


def float_entries(opened: Opened) -> dict[str, TensorEntry]:
    """The float tensors, of a GGUF file under planish's names."""
    if opened.gguf is None:
        return {name: entry for name, entry in opened.entries.items() if entry.dtype in FLOATS}
    path, found = opened.gguf.path, opened.gguf.tensors.items()
    architecture = opened.gguf.keys.get("general.architecture")
    return {
        plain_name(name, architecture): TensorEntry(
            path, one.type, one.shape, 0, one.data.size, one.data
        )
        for name, one in found
        if one.type in FLOATS
    }


def count_not_finite(tensor: np.ndarray) -> int:
    """How many numbers are NaN or infinite, some at a time."""
    flat = tensor.reshape(-1)
    parts = (flat[start : start + AT_ONCE] for start in range(0, flat.size, AT_ONCE))
    return sum(int((~np.isfinite(part)).sum()) for part in parts)
