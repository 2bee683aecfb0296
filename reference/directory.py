"""A model directory, opened: its config read, its tensors found and named, none of them read yet.

A config with a `quantization_config` must be ours, every tensor that the model needs must be
there, and no other. checkpoint.py reads what was found here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reference.architectures import Architecture, architecture_of, model_config
from reference.config import Keys, ModelConfig, read_json
from reference.errors import CheckpointError, ConfigError
from reference.grids import SYMMETRIC_RULES
from reference.quantization_config import check_quantization_config, weight_bits
from reference.shapes import block_kinds, outer_kinds
from reference.shards import check_link, find_entries
from reference.tensorfile import TensorEntry


@dataclass(frozen=True)
class Checkpoint:
    """An opened directory: headers read and checked, tensors not yet."""

    path: Path
    values: dict[str, Any]  # config.json as it stands
    config: ModelConfig
    architecture: Architecture
    entries: dict[str, TensorEntry]

    @property
    def quantization(self) -> dict[str, Any] | None:
        return self.values.get("quantization_config")

    @property
    def layout(self) -> str | None:
        """How quantized weights lie in the files: tiles or canonical; None in a float model."""
        values = self.quantization
        return None if values is None else values.get("layout", "canonical")

    def is_head(self, prefix: str) -> bool:
        return prefix == self.prefix("head")

    def prefix(self, part: str, layer: int | None = None) -> str:
        """The tensor-name prefix of one of our parts, as this directory spells it."""
        if layer is None:
            full = self.architecture.tensors[part]
        else:
            full = self.architecture.block[part].format(i=layer)
        embed = self.architecture.tensors["embed"] + ".weight"
        for prefix in self.architecture.prefixes:
            if embed.removeprefix(prefix) in self.entries:
                return full.removeprefix(prefix)
        return full


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model directory; raises ConfigError or CheckpointError with path, name and values."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError("is not a directory with a model", path=path)
    for file in (*path.glob("*.json"), *path.glob("*.jinja")):
        check_link(file)
    values = read_json(path / "config.json")
    _check_quantization(values, path)
    config = _with_generation(model_config(values, path / "config.json"), path)
    architecture = architecture_of(values, path)
    checkpoint = Checkpoint(path, values, config, architecture, find_entries(path))
    _check_names(checkpoint)
    return checkpoint


def bad_value(
    checkpoint: Checkpoint, name: str, expected: object, found: object
) -> CheckpointError:
    path = checkpoint.path
    return CheckpointError("bad value", path=path, name=name, expected=expected, found=found)


def named_entry(checkpoint: Checkpoint, name: str) -> TensorEntry:
    if name not in checkpoint.entries:
        raise CheckpointError("is missing", path=checkpoint.path, name=name)
    return checkpoint.entries[name]


def checked_entry(
    checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    """A tensor's place, after its type and shape were found to be right."""
    entry, types = named_entry(checkpoint, name), " or ".join(dtypes)
    pairs = {
        "wrong type": (types, entry.dtype, entry.dtype in dtypes),
        "wrong shape": (list(shape), list(entry.shape), entry.shape == tuple(shape)),
    }
    for problem, (expected, found, good) in pairs.items():
        if not good:
            file = entry.file
            raise CheckpointError(problem, path=file, name=name, expected=expected, found=found)
    return entry


def activation_of(checkpoint: Checkpoint, prefix: str) -> str:
    """How a quantized linear treats its input; the head always reads floats."""
    quantization = checkpoint.quantization or {}
    return "float" if checkpoint.is_head(prefix) else quantization["activation"]


def _with_generation(config: ModelConfig, path: Path) -> ModelConfig:
    """generation_config.json, where there is one, has the last word on the end-of-text ids."""
    file = path / "generation_config.json"
    if not file.exists():
        return config
    ids = Keys(read_json(file), file).token_ids("eos_token_id")
    return replace(config, eos_token_ids=ids) if ids else config


def _check_quantization(values: dict[str, Any], path: Path) -> None:
    """A quantization_config must be ours: another's codes would be read as if they were."""
    found = values.get("quantization_config")
    if found is None:
        return
    file, name = path / "config.json", "quantization_config"
    if not isinstance(found, dict):
        found = type(found).__name__
        raise ConfigError("wrong form", path=file, name=name, expected="an object", found=found)
    method, name = found.get("quant_method"), f"{name}.quant_method"
    if method != "planish":
        problem = "cannot be read"
        raise ConfigError(problem, path=file, name=name, expected="planish", found=repr(method))
    check_quantization_config(found, file)


def _check_names(checkpoint: Checkpoint) -> None:
    """Every tensor that some part loads must be there, and no other."""
    config, known = checkpoint.config, set()
    for part, kinds in outer_kinds(config).items():
        prefix = checkpoint.prefix(part)
        tied = part == "head" and config.tie_embeddings
        known |= _require(checkpoint, prefix, kinds, optional=tied)
    for layer in range(config.num_layers):  # stops at the first missing one, however many
        for part, kinds in block_kinds(config).items():
            known |= _require(checkpoint, checkpoint.prefix(part, layer), kinds)
    ignored = checkpoint.architecture.ignored
    for name in checkpoint.entries:
        if name not in known and not any(re.fullmatch(pattern, name) for pattern in ignored):
            problem = "is not a tensor of this model"
            raise CheckpointError(problem, path=checkpoint.path, name=name)


def _require(
    checkpoint: Checkpoint, prefix: str, kinds: tuple[str, ...], optional: bool = False
) -> set[str]:
    """The names that one part may have, after all that it must have were found."""
    must, may = _quantized_kinds(checkpoint, prefix)
    for kind in () if optional else (*kinds, *must):
        named_entry(checkpoint, f"{prefix}.{kind}")
    return {f"{prefix}.{kind}" for kind in (*kinds, *must, *may)}


def _quantized_kinds(
    checkpoint: Checkpoint, prefix: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What must and what may lie beside the codes of a quantized linear, one with a scale.

    Zero points that are 8 everywhere need not be there, but older directories have them.
    """
    quantization = checkpoint.quantization
    if quantization is None or f"{prefix}.weight_scale" not in checkpoint.entries:
        return (), ()
    bits = weight_bits(quantization, checkpoint.is_head(prefix))
    if bits is None:
        return (), ()
    if bits == 8:
        static = activation_of(checkpoint, prefix) == "static"
        return ("weight_scale", "input_scale") if static else ("weight_scale",), ()
    if quantization["rule"] in SYMMETRIC_RULES:
        return ("weight_scale",), ("weight_zero_point",)
    return ("weight_scale", "weight_zero_point"), ()
