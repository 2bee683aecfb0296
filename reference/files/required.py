"""The tensors that a model needs, those that it may have, and those that are none of it.

Every tensor that the model needs must exist. Others are allowed if they change nothing (names.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planish.reference.errors import CheckpointError, ConfigError, notice
from planish.reference.files.checkpoint import Checkpoint, can_be_quantized, head_names
from planish.reference.files.entries import find_entry, general_name
from planish.reference.files.names import is_stray, is_unused, is_zero_bias, unknown_tensor
from planish.reference.model.shapes import block_kinds, block_shapes, outer_kinds
from planish.reference.model.weights import split_expert

NAMED_UNUSED = 3  # how many unused tensors a notice names


def check_targets(checkpoint: Checkpoint) -> None:
    """Raise ConfigError for a target that is no linear of this model: a misspelt name, or a
    config.json of another model, whose linears would be read as something else."""
    if checkpoint.declared is None or not checkpoint.declared.targets:
        return
    linears = {checkpoint.prefix("head")}
    for layer in range(checkpoint.config.num_layers):
        parts = filter(can_be_quantized, block_shapes(checkpoint.config, layer))
        named = {name for part in parts for name in (part, split_expert(part)[0])}
        linears |= {checkpoint.prefix(part, layer) for part in named}
    known = linears | {general_name(prefix) for prefix in linears}
    for target in checkpoint.declared.targets:
        if target not in known:
            file, name = checkpoint.path / "config.json", "quantization_config"
            expected = "targets that are linears of this model"
            raise ConfigError(
                "bad value", path=file, name=name, expected=expected, found=repr(target)
            )


def set_aside_unused(checkpoint: Checkpoint, absent: Mapping[str, str]) -> Checkpoint:
    """Move tensors that the model does not read to `unused`; refuse those that would change it.

    absent: the shard of each tensor that only the index names.
    """
    known, path = _known_names(checkpoint), checkpoint.path
    entries, architecture = checkpoint.entries, checkpoint.architecture
    unused = {name: entry for name, entry in entries.items() if name not in known}
    for name, entry in unused.items():
        known_useless = is_unused(name, architecture, entry) or is_stray(name)
        if not (known_useless or is_zero_bias(name, entry, known)):
            raise unknown_tensor(path, name)
    for name, shard in absent.items():
        if name not in known and not is_unused(name, architecture):
            raise CheckpointError("is missing", path=path / shard, name=name)
    if unused:
        names = ", ".join(list(unused)[:NAMED_UNUSED])
        names += ", ..." if len(unused) > NAMED_UNUSED else ""
        notice(f"{path}: tensors that the model does not use, not read: {len(unused)} ({names})")
    used = {name: entry for name, entry in entries.items() if name in known}
    return replace(checkpoint, entries=used, unused=unused)


def _known_names(checkpoint: Checkpoint) -> set[str]:
    """The names of all tensors that the model may read; raises if a required one is missing."""
    config, known = checkpoint.config, set[str]()
    for part, kinds in outer_kinds(config).items():
        tied = part == "head" and config.tie_embeddings
        known |= _require(checkpoint, part, None, kinds, optional=tied)
    for layer in range(config.num_layers):  # raises at the first missing one
        known |= _require_scales(checkpoint, layer)
        stacked = checkpoint.has_stacked_experts(layer)
        for part, kinds in block_kinds(config, layer).items():
            part = split_expert(part)[0] if stacked else part
            known |= _require(checkpoint, part, layer, kinds)
    return known


def _require_scales(checkpoint: Checkpoint, layer: int) -> set[str]:
    """The names of a layer's attention scales, if it has any; CheckpointError if one is missing."""
    if not checkpoint.has_attention_scales:
        return set()
    prefix = checkpoint.attention_prefix(layer)
    names = {f"{prefix}.{name}_scale" for name in "qkv"}
    for name in sorted(names):
        find_entry(checkpoint, name)
    return names


def _require(
    checkpoint: Checkpoint,
    part: str,
    layer: int | None,
    kinds: tuple[str, ...],
    optional: bool = False,
) -> set[str]:
    """The tensor names of one linear or norm; CheckpointError if a required one is missing."""
    prefix, source = checkpoint.prefix(part, layer), checkpoint.source(part, layer).name
    must, may = _companions(checkpoint, part, layer)
    may = may if kinds else ("weight",)  # smoothing gives one to a norm without
    names = {f"{prefix}.{kind}" for kind in (*must, *may)}
    for kind in kinds:
        own, origins = f"{prefix}.{kind}", [f"{source}.{kind}"]
        if "{h}" in source:
            origins = [f"{name}.{kind}" for name in head_names(checkpoint, source, part)]
        names |= {own} if own in checkpoint.entries else set(origins)
        for name in () if optional or own in checkpoint.entries else origins:
            find_entry(checkpoint, name)
    for kind in must:
        find_entry(checkpoint, f"{prefix}.{kind}")
    return names


def _companions(
    checkpoint: Checkpoint, part: str, layer: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Required and optional companion tensors of a quantized linear."""
    scheme = checkpoint.scheme(part, layer)
    if scheme is None or checkpoint.format is None:
        return (), ()
    return checkpoint.format.companions(scheme)
