"""A linear as another program stores it, and the same linear under planish's names.

A reader (formats/__init__.py) says what each linear is and how its arrays are computed from the
file's; here they become tensors in the canonical layout, computed when they are read:

    P.qweight, P.qzeros, P.scales  ->  P.weight, P.weight_zero_point, P.weight_scale

Nothing is quantized again: codes and scales are those of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.errors import CheckpointError, ConfigError, RecipeError
from planish.reference.files.entries import Declared
from planish.reference.files.formats.fields import bad_field
from planish.reference.files.safetensors import DTYPES, TensorEntry
from planish.reference.grids import num_groups
from planish.reference.packing import pack_nibbles
from planish.reference.scheme import FOREIGN_GROUP_SIZES, Scheme

Compute = Callable[[], np.ndarray]
SCALE_TYPES = {"float16": "F16", "float32": "F32"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a reader sees of a directory: its tensors and its quantization_config."""

    path: Path  # of the directory
    values: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]
    declared: Declared | None = None
    tied_head: str | None = None  # the prefix of lm_head, if it is the embedding and not stored

    def refuse(self, prefix: str, problem: str, expected: object, found: object) -> CheckpointError:
        """The error for a linear that cannot be read."""
        return CheckpointError(problem, path=self.path, name=prefix, expected=expected, found=found)

    def bad(self, name: str, expected: object, found: object) -> ConfigError:
        """The error for a value of the quantization_config."""
        return bad_field(self.path / "config.json", name, expected, found)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One linear [N, K]; the arrays are computed when they are read.

    scheme: None if `codes` gives float32 weights. codes: [N, K], uint8 0..15 of INT4, int8 of INT8,
    uint8 of INT8 with an offset. scale, zero_point, offset: [N, G]. order: int32 [K], the
    permutation of an act order. input_scale: float32 [1]. input_zero_point: int8 [1]. head: of an
    embedding, whose codes give floats, the same as a linear: lm_head, where it is tied to it.
    """

    shape: tuple[int, int]
    codes: Compute
    scheme: Scheme | None = None
    packed: bool = False  # codes of INT4 are bytes [N, ceil(K / 2)], as planish packs them
    scale: Compute | None = None
    zero_point: Compute | None = None
    offset: Compute | None = None
    order: Compute | None = None
    input_scale: Compute | None = None
    input_zero_point: Compute | None = None
    head: Stored | None = None


@dataclass(frozen=True)
class ComputedEntry(TensorEntry):
    """A tensor that is computed from others when it is read."""

    compute: Compute = field(repr=False, compare=False)

    def map(self) -> np.ndarray:
        """The tensor; each call computes it again."""
        tensor = np.ascontiguousarray(self.compute(), DTYPES[self.dtype])
        if tensor.shape != self.shape:
            raise TypeError(f"computed {tensor.shape} for {self.shape}")
        tensor.flags.writeable = False
        return tensor


@dataclass(frozen=True)
class CodedEntry(ComputedEntry):
    """An embedding as floats, and the tensors that hold its codes, as those of a linear."""

    scheme: Scheme = field(compare=False)
    kinds: Mapping[str, TensorEntry] = field(repr=False, compare=False)


def compute_entry(
    file: Path, dtype: str, shape: tuple[int, ...], compute: Compute
) -> ComputedEntry:
    """An entry for a tensor that is computed from tensors of a file."""
    size = math.prod(shape) * DTYPES[dtype].itemsize
    return ComputedEntry(file, dtype, shape, 0, size, np.empty(0, np.uint8), compute)


def planish_entries(file: Path, stored: Stored) -> dict[str, TensorEntry]:
    """The tensors of a linear by the kinds that planish's format gives them."""
    (rows, cols), scheme = stored.shape, stored.scheme
    if scheme is None:
        floats = compute_entry(file, "F32", (rows, cols), stored.codes)
        return {"weight": _with_codes(floats, stored)}
    codes, held, dtype = stored.codes, (rows, cols), "U8" if scheme.offset else "I8"
    if scheme.bits == 4:
        codes = stored.codes if stored.packed else lambda: pack_nibbles(stored.codes())
        held, dtype = (rows, -(-cols // 2)), "U8"
    beside = _scale_shape(scheme, rows, cols)
    scales = SCALE_TYPES[scheme.scale_dtype]
    arrays: dict[str, tuple[str, tuple[int, ...], Compute | None]] = {
        "weight": (dtype, held, codes),
        "weight_scale": (scales, beside, stored.scale),
        "weight_zero_point": ("U8", beside, stored.zero_point),
        "weight_offset": ("F32", beside, stored.offset),
        "weight_permutation": ("I32", (cols,), stored.order),
        "input_scale": ("F32", (1,), stored.input_scale),
        "input_zero_point": ("I8", (1,), stored.input_zero_point),
    }
    return {
        kind: compute_entry(file, dtype, shape, compute)
        for kind, (dtype, shape, compute) in arrays.items()
        if compute is not None
    }


def _with_codes(floats: ComputedEntry, stored: Stored) -> TensorEntry:
    """The entry of an embedding that has codes; another as it is."""
    if stored.head is None or stored.head.scheme is None:
        return floats
    fields = {one.name: getattr(floats, one.name) for one in dataclass_fields(floats)}
    return CodedEntry(
        **fields, scheme=stored.head.scheme, kinds=planish_entries(floats.file, stored.head)
    )


def _scale_shape(scheme: Scheme, rows: int, cols: int) -> tuple[int, int]:
    if scheme.granularity == "per_tensor":
        return 1, 1
    return rows, num_groups(cols, scheme.group_size)


def choose_scheme(source: Source, prefix: str, **fields: Any) -> Scheme:
    """A linear's scheme; CheckpointError for one that planish does not compute."""
    try:
        return Scheme(**fields)
    except RecipeError as problem:
        found = ", ".join(f"{name} {value}" for name, value in fields.items())
        raise source.refuse(prefix, f"cannot be read: {problem}", None, found) from None


def choose_group_size(source: Source, prefix: str, cols: int, groups: int) -> int:
    """The group size of `groups` groups of K inputs, -1 for one group; unique among powers of two.

    ceil(K / 2g) < ceil(K / g) wherever there are two groups or more.
    """
    if groups == 1:
        return -1
    for size in FOREIGN_GROUP_SIZES:
        if num_groups(cols, size) == groups:
            return size
    expected = f"groups of {', '.join(map(str, FOREIGN_GROUP_SIZES))} inputs"
    raise source.refuse(prefix, "cannot be read", expected, f"{groups} groups of {cols} inputs")


def grouping(source: Source, prefix: str, cols: int, groups: int) -> dict[str, Any]:
    """The fields `granularity` and `group_size` of a scheme."""
    size = choose_group_size(source, prefix, cols, groups)
    return {"granularity": "per_channel" if size == -1 else "per_group", "group_size": size}


def scale_type(source: Source, name: str) -> dict[str, Any]:
    """The field `scale_dtype` of a scheme: float16 as it is, wider types in float32."""
    narrow = source.entries[name].dtype == "F16"
    return {"scale_dtype": "float16" if narrow else "float32"}


def linears_with(source: Source, kind: str) -> list[str]:
    """The prefixes of all tensors of a kind, such as `qweight`."""
    ending = f".{kind}"
    return [name.removesuffix(ending) for name in source.entries if name.endswith(ending)]
