"""A Hugging Face directory, read lazily: config, tensors by name, one block at a time.

Float tensors may be float32, float16 or bfloat16 and come out as float32. A directory whose
config has a `quantization_config` with quant_method `planish` holds, for a quantized linear P:

    P.weight              int8 [N, K], or uint8 [N, ceil(K / 2)] of packed nibbles
    P.weight_scale        float32 [N, 1] or [1, 1]; INT4: float16 or float32 [N, G]
    P.weight_zero_point   uint8 [N, G], INT4 only
    P.input_scale         float32 [1], static activations only
    P.bias                as in the float model

Nothing is unpickled and no path leaves the directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reference.architectures import Architecture, architecture_of, model_config
from reference.config import Keys, ModelConfig, read_json
from reference.errors import CheckpointError, ConfigError
from reference.grids import num_groups
from reference.layers import Norm
from reference.linear import Linear, QuantizedWeight
from reference.model import Block, Weights
from reference.quantization_config import check_quantization_config
from reference.shapes import block_shapes, outer_shapes
from reference.tensorfile import TensorEntry, read_entries

FLOATS = ("F32", "F16", "BF16")
KINDS = ("weight", "bias", "weight_scale", "weight_zero_point", "input_scale")


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
    values = read_json(path / "config.json")
    _check_quantization(values, path)
    config = _with_generation(model_config(values, path / "config.json"), path)
    architecture = architecture_of(values, path)
    checkpoint = Checkpoint(path, values, config, architecture, _find_entries(path))
    _check_names(checkpoint)
    return checkpoint


def load_weights(checkpoint: Checkpoint) -> Weights:
    """The model with lazy blocks: each is read when it is indexed."""
    config, shapes = checkpoint.config, outer_shapes(checkpoint.config)
    embed = load_float(checkpoint, checkpoint.prefix("embed") + ".weight", shapes["embed"])
    positions = None
    if "positions" in shapes:
        name = checkpoint.prefix("positions") + ".weight"
        positions = load_float(checkpoint, name, shapes["positions"])
    projects = [
        load_linear(checkpoint, checkpoint.prefix(part), shapes[part], False)
        if part in shapes
        else None
        for part in ("project_in", "project_out")
    ]
    final_norm = (
        _load_norm(checkpoint, checkpoint.prefix("final_norm")) if config.final_norm else None
    )
    head = checkpoint.prefix("head")
    if config.tie_embeddings and head + ".weight_scale" not in checkpoint.entries:
        lm_head = Linear(embed)
    else:
        lm_head = load_linear(checkpoint, head, shapes["head"], False)
    blocks = Blocks(checkpoint)
    return Weights(embed, positions, projects[0], blocks, final_norm, projects[1], lm_head)


class Blocks(Sequence[Block]):
    """The blocks of a checkpoint, each read from disk whenever it is asked for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def __len__(self) -> int:
        return self.checkpoint.config.num_layers

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return load_block(self.checkpoint, index)

    def __iter__(self) -> Iterator[Block]:
        return (load_block(self.checkpoint, index) for index in range(len(self)))


def load_block(checkpoint: Checkpoint, layer: int) -> Block:
    """Read one layer's tensors."""
    parts: dict[str, Any] = {"gate": None}
    for part, (shape, bias) in block_shapes(checkpoint.config).items():
        parts[part] = load_linear(checkpoint, checkpoint.prefix(part, layer), shape, bias)
    for part in ("attention_norm", "mlp_norm"):
        parts[part] = _load_norm(checkpoint, checkpoint.prefix(part, layer))
    return Block(**parts)


def load_linear(
    checkpoint: Checkpoint, prefix: str, shape: tuple[int, ...], has_bias: bool
) -> Linear:
    """Weight (float or quantized) and bias of one linear, with its activations' treatment."""
    bias = load_float(checkpoint, f"{prefix}.bias", shape[:1]) if has_bias else None
    if f"{prefix}.weight_scale" not in checkpoint.entries:
        return Linear(load_float(checkpoint, f"{prefix}.weight", shape), bias)
    weight = _load_quantized(checkpoint, prefix, shape)
    is_head = prefix == checkpoint.prefix("head")
    activation = "float" if is_head else checkpoint.values["quantization_config"]["activation"]
    layer = Linear(weight, bias, activation)
    if activation != "static":
        return layer
    scale = load_float(checkpoint, f"{prefix}.input_scale", (1,))
    _require_positive(checkpoint, f"{prefix}.input_scale", scale)
    return replace(layer, activation_scale=scale)


def load_float(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float tensor as float32 (a view of the file if it is float32 there); NaN and Inf are errors."""
    tensor = _entry(checkpoint, name, FLOATS, shape).map().astype(np.float32, copy=False)
    if not np.isfinite(tensor).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(tensor))[0])
        raise CheckpointError(
            "bad value",
            path=checkpoint.path,
            name=name,
            expected="finite",
            found=f"{tensor[bad]} at {bad}",
        )
    return tensor


def _load_quantized(checkpoint: Checkpoint, prefix: str, shape: tuple[int, ...]) -> QuantizedWeight:
    rows, cols = shape
    if _named(checkpoint, f"{prefix}.weight").dtype == "I8":
        codes = _entry(checkpoint, f"{prefix}.weight", ("I8",), shape).map()
        name = f"{prefix}.weight_scale"
        found = _named(checkpoint, name).shape
        scale = _entry(checkpoint, name, ("F32",), (1, 1) if found == (1, 1) else (rows, 1)).map()
        _require_positive(checkpoint, name, scale)
        return QuantizedWeight(codes, scale, None, 8, cols)
    group_size = checkpoint.values["quantization_config"]["group_size"]
    groups = (rows, num_groups(cols, group_size))
    codes = _entry(checkpoint, f"{prefix}.weight", ("U8",), (rows, -(-cols // 2))).map()
    scale = _entry(checkpoint, f"{prefix}.weight_scale", ("F16", "F32"), groups).map()
    zero = _entry(checkpoint, f"{prefix}.weight_zero_point", ("U8",), groups).map()
    if not np.isfinite(scale).all() or (scale == 0).any():
        raise _bad(checkpoint, f"{prefix}.weight_scale", "finite scales other than 0", "another")
    if zero.max() > 15:
        raise _bad(checkpoint, f"{prefix}.weight_zero_point", "0..15", zero.max())
    return QuantizedWeight(codes, scale, zero, 4, cols, group_size)


def _load_norm(checkpoint: Checkpoint, prefix: str) -> Norm:
    config = checkpoint.config
    if not config.norm_affine:
        return Norm(None)
    shape = (config.hidden_size,)
    weight = load_float(checkpoint, f"{prefix}.weight", shape)
    bias = load_float(checkpoint, f"{prefix}.bias", shape) if config.norm == "layer_norm" else None
    return Norm(weight, bias)


def _bad(checkpoint: Checkpoint, name: str, expected: object, found: object) -> CheckpointError:
    return CheckpointError(
        "bad value", path=checkpoint.path, name=name, expected=expected, found=found
    )


def _require_positive(checkpoint: Checkpoint, name: str, scale: np.ndarray) -> None:
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _bad(checkpoint, name, "positive finite scales", "another")


def _named(checkpoint: Checkpoint, name: str) -> TensorEntry:
    if name not in checkpoint.entries:
        raise CheckpointError("is missing", path=checkpoint.path, name=name)
    return checkpoint.entries[name]


def _entry(
    checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    entry = _named(checkpoint, name)
    if entry.dtype not in dtypes:
        raise CheckpointError(
            "wrong type",
            path=entry.file,
            name=name,
            expected=" or ".join(dtypes),
            found=entry.dtype,
        )
    if entry.shape != tuple(shape):
        raise CheckpointError(
            "wrong shape", path=entry.file, name=name, expected=list(shape), found=list(entry.shape)
        )
    return entry


def _with_generation(config: ModelConfig, path: Path) -> ModelConfig:
    """generation_config.json, where there is one, has the last word on the end-of-text ids."""
    file = path / "generation_config.json"
    if not file.exists():
        return config
    ids = Keys(read_json(file), file).token_ids("eos_token_id")
    return replace(config, eos_token_ids=ids) if ids else config


def _check_quantization(values: dict[str, Any], path: Path) -> None:
    quantization = values.get("quantization_config")
    if quantization is None:
        return
    where = path / "config.json"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != "planish":
        raise ConfigError(
            "cannot be read",
            path=where,
            name="quant_method",
            expected="planish",
            found=repr(method),
        )
    check_quantization_config(quantization, where)


def _find_entries(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of the directory; the index, where there is one, has the last word."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        return _indexed_entries(path, index)
    if (path / "model.safetensors").exists():
        return read_entries(_inside(path, "model.safetensors", path))
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl"))
    if pickles:
        raise CheckpointError(
            "pickled weights are never loaded; convert them to safetensors",
            path=path,
            found=pickles[0],
        )
    raise CheckpointError("has no model.safetensors and no index", path=path)


def _indexed_entries(path: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConfigError(
            "bad value", path=index, name="weight_map", expected="tensor name -> file name"
        )
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        for name, entry in read_entries(_inside(path, shard, index)).items():
            if name in entries:
                raise CheckpointError("stands in two shards", path=index, name=name, found=shard)
            if weight_map.get(name) != shard:
                found = weight_map.get(name, "no entry")
                raise CheckpointError(
                    "is not where the index says",
                    path=index,
                    name=name,
                    expected=shard,
                    found=found,
                )
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise CheckpointError("is missing", path=path / shard, name=name)
    return entries


def _inside(path: Path, name: str, index: Path) -> Path:
    """A weights file by its plain name; only Hugging Face's own cache may link out, to its blobs."""
    if not re.fullmatch(r"[\w.-]+\.safetensors", name):
        raise CheckpointError("a shard must be a plain file name", path=index, found=repr(name))
    file = path / name
    if not file.exists():
        raise CheckpointError("shard is missing", path=file)
    allowed = (path.resolve(), path.resolve().parent.parent / "blobs")
    if file.resolve().parent not in allowed:
        raise CheckpointError("links out of the model's directory", path=file, found=file.resolve())
    return file


def _check_names(checkpoint: Checkpoint) -> None:
    """Every linear, norm and embedding must be there, and nothing that no part would load."""
    known = {checkpoint.prefix(part) for part in checkpoint.architecture.tensors}
    for layer in range(checkpoint.config.num_layers):
        for part in block_shapes(checkpoint.config):
            _named(checkpoint, checkpoint.prefix(part, layer) + ".weight")
        known |= {checkpoint.prefix(part, layer) for part in checkpoint.architecture.block}
    for name in checkpoint.entries:
        prefix, _, kind = name.rpartition(".")
        ignored = any(re.fullmatch(p, name) for p in checkpoint.architecture.ignored)
        if not ignored and (prefix not in known or kind not in KINDS):
            raise CheckpointError(
                "is not a tensor of this architecture", path=checkpoint.path, name=name
            )
