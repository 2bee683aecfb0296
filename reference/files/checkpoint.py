"""Open a model directory: read its config, find and name its tensors, without reading them.

A `quantization_config` must be in a format that we read (formats/), and every tensor that the model
needs must exist. Others are allowed if they change nothing (names.py). load.py then reads the
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from planish.reference.architectures import Architecture, Tensor, architecture_of, model_config
from planish.reference.architectures.read.keys import Keys
from planish.reference.errors import CheckpointError, ConfigError, notice
from planish.reference.files.entries import Declared, find_entry, general_name
from planish.reference.files.foreign import (
    Translated,
    reader_of,
    translate_directory,
    translate_file,
    with_old_config,
)
from planish.reference.files.formats import FORMATS, Format, find_format
from planish.reference.files.formats.translate import Origin
from planish.reference.files.fused import split_fused
from planish.reference.files.names import (
    base_names,
    is_unused,
    is_zero_bias,
    plain_names,
    rename_entries,
    unknown_tensor,
)
from planish.reference.files.safetensors import TensorEntry
from planish.reference.files.shards import check_link, find_entries
from planish.reference.files.writer import COPIED
from planish.reference.gguf import find_gguf, split_parts
from planish.reference.json import read_json
from planish.reference.model.config import ModelConfig
from planish.reference.model.shapes import block_kinds, block_shapes, outer_kinds
from planish.reference.model.weights import split_expert
from planish.reference.scheme import HEAD_ACTIVATIONS, Scheme

FILES = ("config.json", *COPIED)  # read or copied, in addition to weights and their index
NAMED_UNUSED = 3  # how many unused tensors a notice names


@dataclass(frozen=True)
class Checkpoint:
    """An opened directory: headers read and checked, tensors not read yet.

    entries has the architecture's names, without a wrapper's prefix.
    """

    path: Path
    values: dict[str, Any]  # config.json, unchanged
    config: ModelConfig
    architecture: Architecture
    entries: dict[str, TensorEntry]
    unused: dict[str, TensorEntry] = field(default_factory=dict)  # not read by the model
    learned_positions: int | None = None  # rows of the table, if more than config.max_positions
    format: Format | None = None  # of quantized weights; None in a float model
    declared: Declared | None = None  # what quantization_config declares
    origin: Origin | None = None  # of what another program wrote
    config_path: Path | None = None  # the directory given with a GGUF file, of its config

    @property
    def tokenizer_path(self) -> Path:
        """The directory or the GGUF file that has the tokenizer."""
        return self.path if self.config_path is None else self.config_path

    @property
    def quantization(self) -> dict[str, Any] | None:
        return self.values.get("quantization_config")

    @property
    def layout(self) -> str | None:
        """The layout of quantized weights in the files (quantized.py); None in a float model."""
        return None if self.declared is None else self.declared.layout

    def scheme(self, part: str, layer: int | None = None) -> Scheme | None:
        """The scheme of a linear, or of all experts' (`experts.up`); None if it is in float.

        Raises ConfigError for a scheme that the linear cannot have.
        """
        if self.format is None or not can_be_quantized(part):
            return None
        prefix = self.prefix(part, layer)
        scheme = self.format.scheme(self, prefix, part)
        expected = None
        if part == "head" and scheme and scheme.activation not in HEAD_ACTIVATIONS:
            expected = f"activations {', '.join(HEAD_ACTIVATIONS)}"
        if part.startswith("experts.") and scheme and scheme.input_zero_point:
            expected = "symmetric inputs of experts"
        if expected is not None and scheme is not None:
            found = str(scheme) if scheme.input_zero_point else scheme.activation
            raise ConfigError(
                "bad scheme", path=self.path, name=prefix, expected=expected, found=found
            )
        return scheme

    def source(self, part: str, layer: int | None = None) -> Tensor:
        """The source's tensor for a linear or norm, under the name that this directory uses.

        `experts.gate` gives the stacked experts' name: that without the expert's number.
        """
        general, expert = split_expert(part)
        tensor = self.architecture.tensor(general)
        names = [tensor.name, *tensor.also]
        names = names if expert is not None else [name.replace(".{e}", "") for name in names]
        names = [name.format(i=layer, e=expert, h="{h}") for name in names]
        names = [name.removeprefix(self.left_off) for name in names]
        there = (name for name in names if f"{name}.weight".format(h=0) in self.entries)
        return replace(tensor, name=next(there, names[0]))

    def prefix(self, part: str, layer: int | None = None) -> str:
        """The tensor-name prefix under which planish writes a linear or norm, and looks for it.

        It differs from the source's name if that tensor is fused, transposed or has 1 subtracted,
        and for the weight that smoothing adds to a norm without one.
        """
        source, config = self.source(part, layer), self.config
        as_is = config.norm_affine and not config.norm_plus_one
        plain = source.plain and (as_is or not part.endswith("norm"))
        name = source.name.replace(".{h}", "")
        return name if plain else f"{name}.{part}"

    @property
    def has_attention_scales(self) -> bool:
        """Whether calibrated scales of attention are stored (docs/file-format.md)."""
        return self.declared is not None and self.declared.kv_cache == "int8_static"

    def attention_prefix(self, layer: int) -> str:
        """The prefix of a layer's attention, beside whose linears its scales are stored."""
        return self.source("o", layer).name.rpartition(".")[0]

    def has_stacked_experts(self, layer: int) -> bool:
        """Whether a layer's experts are stacked: one tensor for all gates, ups or downs."""
        if self.format is None or not self.config.layers[layer].experts:
            return False
        return self.scheme("experts.up", layer) is not None

    def stored_prefix(self, part: str, layer: int | None = None) -> str:
        """Prefix of the stored tensor that contains this linear, alone, fused or stacked."""
        general, expert = split_expert(part)
        if expert is not None and layer is not None and self.has_stacked_experts(layer):
            return self.prefix(general, layer)
        own = self.prefix(part, layer)
        return own if f"{own}.weight" in self.entries else self.source(part, layer).name

    def schemes(self) -> dict[str, Scheme | None]:
        """The scheme of every linear that can be quantized, by the prefix of its stored tensor.

        Stacked experts are one entry.
        """
        found = {
            self.stored_prefix(part, layer): self.scheme(self._stored_part(part, layer), layer)
            for layer in range(self.config.num_layers)
            for part in block_shapes(self.config, layer)
            if part != "router"
        }
        return found | {self.prefix("head"): self.scheme("head")}

    def _stored_part(self, part: str, layer: int) -> str:
        """experts.3.gate -> experts.gate if this layer's experts are stacked."""
        general, expert = split_expert(part)
        return general if expert is not None and self.has_stacked_experts(layer) else part

    @cached_property
    def left_off(self) -> str:
        """The prefix of the architecture's names that this directory omits."""
        embed, base = base_names(self.architecture)
        left_off = embed not in self.entries and embed.removeprefix(base) in self.entries
        return base if left_off else ""


def can_be_quantized(part: str) -> bool:
    """Whether this is lm_head or a linear of a block other than the router."""
    general, _ = split_expert(part)
    return general.rpartition(".")[2] in (*"qkvo", "gate", "up", "down", "head")


def head_names(checkpoint: Checkpoint, source: str, part: str) -> list[str]:
    """The names of a norm that is stored as one tensor for each head."""
    config = checkpoint.config
    heads = config.num_heads if part == "q_norm" else config.num_kv_heads
    return [source.format(h=head) for head in range(heads)]


def open_checkpoint(
    path: str | Path, allow_links: bool = False, config: str | Path | None = None
) -> Checkpoint:
    """Open a model directory; raises ConfigError or CheckpointError with path, name and values.

    allow_links: whether its files may be links out of the directory (shards.py). config: for a GGUF
    file, the directory of a config.json and a tokenizer.json to use in place of the file's keys.
    """
    path = Path(path)
    if (file := find_gguf(path)) is not None:
        for part in split_parts(file):
            check_link(part, allow_links)
        return _open_gguf(file, path, None if config is None else Path(config), allow_links)
    if config is not None:
        raise ConfigError("is for a GGUF file; a directory has its own", name="config", found=path)
    if not path.is_dir():
        raise CheckpointError("is not a directory with a model, nor a GGUF file", path=path)
    for name in FILES:
        check_link(path / name, allow_links)
    values = read_json(path / "config.json")
    values = with_old_config(values, path, allow_links)
    reader = reader_of(values)
    form, declared = _format_of(values, path) if reader is None else (None, None)
    features = model_config(values, path / "config.json")
    features = _with_generation(features, path, "eos_token_id" in values)
    if declared is not None:
        features = replace(features, attention=declared.attention, kv_cache=declared.kv_cache)
    architecture = architecture_of(values, path)
    entries, absent = find_entries(path, allow_links)
    plain = plain_names([*entries, *absent], architecture)
    checkpoint = Checkpoint(
        path,
        values,
        features,
        architecture,
        rename_entries(path, entries, plain),
        format=form,
        declared=declared,
    )
    if reader is not None:
        made = translate_directory(path, values, checkpoint.entries, reader, _tied_head(checkpoint))
        checkpoint = split_fused(_with_translated(checkpoint, made))
    checkpoint = _set_aside_unused(
        checkpoint, {plain[name]: shard for name, shard in absent.items()}
    )
    _check_targets(checkpoint)
    return checkpoint


def _open_gguf(file: Path, path: Path, given: Path | None, allow_links: bool) -> Checkpoint:
    """A GGUF file, with the config.json given or beside it if there is one."""
    for name in FILES if given else ():
        check_link(Path(given or path) / name, allow_links)
    config, made = translate_file(file, path, given)
    stated = "eos_token_id" in made.values
    config = config if given is None else _with_generation(config, given, stated)
    architecture = architecture_of(made.values, path)
    checkpoint = Checkpoint(
        path, made.values, config, architecture, made.entries, config_path=given
    )
    checkpoint = _set_aside_unused(_with_translated(checkpoint, made), {})
    _check_targets(checkpoint)
    return checkpoint


def _tied_head(checkpoint: Checkpoint) -> str | None:
    """The prefix of lm_head, if it is the embedding and nothing of it is stored."""
    prefix = checkpoint.prefix("head")
    stored = any(name.startswith(f"{prefix}.") for name in checkpoint.entries)
    return prefix if checkpoint.config.tie_embeddings and not stored else None


def _with_translated(checkpoint: Checkpoint, made: Translated) -> Checkpoint:
    """The checkpoint of another program as one of planish's own."""
    return replace(
        checkpoint,
        values=made.values,
        entries=made.entries,
        format=None if made.declared is None else FORMATS["planish"],
        declared=made.declared,
        origin=made.origin,
    )


def _with_generation(config: ModelConfig, path: Path, stated: bool) -> ModelConfig:
    """The config with the end-of-text ids of generation_config.json, if it exists.

    They are added to those that config.json states, as each file alone may lack the token that
    ends a turn; they replace a default of the architecture.
    """
    file = path / "generation_config.json"
    if not file.exists():
        return config
    ids = Keys(read_json(file), file).token_ids("eos_token_id")
    known = config.eos_token_ids if stated or not ids else ()
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*known, *ids))))


def _format_of(values: dict[str, Any], path: Path) -> tuple[Format | None, Declared | None]:
    """The format of quantized weights and what it declares; ConfigError if we do not read it."""
    found = values.get("quantization_config")
    if found is None:
        return None, None
    file, name = path / "config.json", "quantization_config"
    if not isinstance(found, dict):
        found = type(found).__name__
        raise ConfigError("wrong form", path=file, name=name, expected="an object", found=found)
    form = find_format(found, file)
    return form, form.parse(found, file)


def _check_targets(checkpoint: Checkpoint) -> None:
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


def _set_aside_unused(checkpoint: Checkpoint, absent: Mapping[str, str]) -> Checkpoint:
    """Move tensors that the model does not read to `unused`; refuse those that would change it.

    absent: the shard of each tensor that only the index names.
    """
    known, path = _known_names(checkpoint), checkpoint.path
    entries, architecture = checkpoint.entries, checkpoint.architecture
    unused = {name: entry for name, entry in entries.items() if name not in known}
    for name, entry in unused.items():
        if not (is_unused(name, architecture, entry) or is_zero_bias(name, entry, known)):
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
