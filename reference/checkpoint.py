"""A Hugging Face directory, read lazily: config, tensors by name, one block at a time.

Float tensors may be float32, float16 or bfloat16 and come out as float32. A directory whose
config has a `quantization_config` with quant_method `planish` holds, for a quantized linear P:

    P.weight              int8 [N, K], or uint8 [N, ceil(K / 2)] of packed nibbles
    P.weight_scale        float32 [N, 1] or [1, 1]; INT4: float16 or float32 [N, G]
    P.weight_zero_point   uint8 [N, G], INT4 by the rule minmax; other rules have 8 everywhere
    P.input_scale         float32 [1], static activations only
    P.bias                as in the float model

Nothing is unpickled and no path leaves the directory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from reference.architectures import Architecture, architecture_of, model_config
from reference.config import Keys, ModelConfig, read_json
from reference.errors import CheckpointError, ConfigError
from reference.grids import SYMMETRIC_RULES, num_groups
from reference.layers import Norm
from reference.linear import Linear, QuantizedWeight
from reference.model import Block, Weights
from reference.quantization_config import check_quantization_config, weight_bits
from reference.shapes import block_kinds, block_shapes, outer_kinds, outer_shapes
from reference.shards import check_link, find_entries
from reference.tensorfile import TensorEntry

FLOATS = ("F32", "F16", "BF16")


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
    for file in (*path.glob("*.json"), *path.glob("*.jinja")):
        check_link(file)
    values = read_json(path / "config.json")
    _check_quantization(values, path)
    config = _with_generation(model_config(values, path / "config.json"), path)
    architecture = architecture_of(values, path)
    checkpoint = Checkpoint(path, values, config, architecture, find_entries(path))
    _check_names(checkpoint)
    return checkpoint


def load_weights(checkpoint: Checkpoint) -> Weights:
    """The model with lazy blocks: each is read when it is indexed."""
    embed = _load_outer(checkpoint, "embed")
    positions = project_in = project_out = final_norm = None
    if checkpoint.config.position_offset is not None:
        positions = _load_outer(checkpoint, "positions")
    if checkpoint.config.projects:
        project_in = Linear(_load_outer(checkpoint, "project_in"))
        project_out = Linear(_load_outer(checkpoint, "project_out"))
    if checkpoint.config.final_norm:
        final_norm = _load_norm(checkpoint, checkpoint.prefix("final_norm"))
    blocks, head = Blocks(checkpoint), _load_head(checkpoint, embed)
    return Weights(embed, positions, project_in, blocks, final_norm, project_out, head)


def _load_outer(checkpoint: Checkpoint, part: str) -> np.ndarray:
    name = f"{checkpoint.prefix(part)}.weight"
    return load_float(checkpoint, name, outer_shapes(checkpoint.config)[part])


def _load_head(checkpoint: Checkpoint, embed: np.ndarray) -> Linear:
    """The head's own weight, or the embedding; a tied head that was quantized has its own."""
    prefix = checkpoint.prefix("head")
    if checkpoint.config.tie_embeddings and f"{prefix}.weight_scale" not in checkpoint.entries:
        return Linear(embed)
    return load_linear(checkpoint, prefix, outer_shapes(checkpoint.config)["head"], False)


class Blocks(Sequence[Block]):
    """The blocks of a checkpoint, each read from disk whenever it is asked for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def __len__(self) -> int:
        return self.checkpoint.config.num_layers

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return load_block(self.checkpoint, chosen)
        return [load_block(self.checkpoint, layer) for layer in chosen]


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
    activation = _activation(checkpoint, prefix)
    layer = Linear(weight, bias, activation)
    if activation != "static":
        return layer
    scale = load_float(checkpoint, f"{prefix}.input_scale", (1,))
    _require_positive(checkpoint, f"{prefix}.input_scale", scale)
    return replace(layer, activation_scale=scale)


def _activation(checkpoint: Checkpoint, prefix: str) -> str:
    """How a quantized linear treats its input; the head always reads floats."""
    quantization = checkpoint.quantization or {}
    return "float" if prefix == checkpoint.prefix("head") else quantization["activation"]


def load_float(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float tensor as float32, a view of the file if it is float32 there; it must be finite."""
    entry = _entry(checkpoint, name, FLOATS, shape)
    with np.errstate(invalid="ignore"):  # a signalling NaN is reported below, by name
        tensor = entry.map().astype(np.float32, copy=False)
    finite = np.isfinite(tensor)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise _bad(checkpoint, name, "finite", f"{tensor[index]} at {index}")
    return tensor


def _load_quantized(checkpoint: Checkpoint, prefix: str, shape: tuple[int, ...]) -> QuantizedWeight:
    quantization, (rows, cols) = checkpoint.quantization or {}, shape
    is_head = prefix == checkpoint.prefix("head")
    if weight_bits(quantization, is_head) == 8:
        return _load_int8(checkpoint, prefix, rows, cols)
    return _load_int4(checkpoint, prefix, rows, cols, quantization["group_size"])


def _load_int8(checkpoint: Checkpoint, prefix: str, rows: int, cols: int) -> QuantizedWeight:
    codes = _entry(checkpoint, f"{prefix}.weight", ("I8",), (rows, cols)).map()
    if codes.min() == -128:  # the grid is symmetric, and kernels may rely on it
        raise _bad(checkpoint, f"{prefix}.weight", "codes -127..127", -128)
    name = f"{prefix}.weight_scale"
    whole = _named(checkpoint, name).shape == (1, 1)
    scale = _entry(checkpoint, name, ("F32",), (1 if whole else rows, 1)).map()
    _require_positive(checkpoint, name, scale)
    return QuantizedWeight(codes, scale, None, 8, cols)


def _load_int4(
    checkpoint: Checkpoint, prefix: str, rows: int, cols: int, group_size: int
) -> QuantizedWeight:
    groups = (rows, num_groups(cols, group_size))
    codes = _entry(checkpoint, f"{prefix}.weight", ("U8",), (rows, -(-cols // 2))).map()
    scale = _entry(checkpoint, f"{prefix}.weight_scale", ("F16", "F32"), groups).map()
    zero = None
    if f"{prefix}.weight_zero_point" in checkpoint.entries:
        zero = _entry(checkpoint, f"{prefix}.weight_zero_point", ("U8",), groups).map()
    good = np.isfinite(scale) & (scale != 0)
    if not good.all():
        found = scale[~good][0]
        raise _bad(checkpoint, f"{prefix}.weight_scale", "finite scales other than 0", found)
    if zero is not None and zero.max() > 15:
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
    path = checkpoint.path
    return CheckpointError("bad value", path=path, name=name, expected=expected, found=found)


def _require_positive(checkpoint: Checkpoint, name: str, scale: np.ndarray) -> None:
    good = np.isfinite(scale) & (scale > 0)
    if not good.all():
        raise _bad(checkpoint, name, "positive finite scales", scale[~good][0])


def _named(checkpoint: Checkpoint, name: str) -> TensorEntry:
    if name not in checkpoint.entries:
        raise CheckpointError("is missing", path=checkpoint.path, name=name)
    return checkpoint.entries[name]


def _entry(
    checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    """A tensor's place, after its type and shape were found to be right."""
    entry, types = _named(checkpoint, name), " or ".join(dtypes)
    pairs = {
        "wrong type": (types, entry.dtype, entry.dtype in dtypes),
        "wrong shape": (list(shape), list(entry.shape), entry.shape == tuple(shape)),
    }
    for problem, (expected, found, good) in pairs.items():
        if not good:
            file = entry.file
            raise CheckpointError(problem, path=file, name=name, expected=expected, found=found)
    return entry


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
        _named(checkpoint, f"{prefix}.{kind}")
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
    bits = weight_bits(quantization, prefix == checkpoint.prefix("head"))
    if bits is None:
        return (), ()
    if bits == 8:
        static = _activation(checkpoint, prefix) == "static"
        return ("weight_scale", "input_scale") if static else ("weight_scale",), ()
    if quantization["rule"] in SYMMETRIC_RULES:
        return ("weight_scale",), ("weight_zero_point",)
    return ("weight_scale", "weight_zero_point"), ()
