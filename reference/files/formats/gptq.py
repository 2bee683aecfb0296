"""GPTQ (GPTQModel, AutoGPTQ, AutoRound, Intel Neural Compressor): 2, 4 and 8 bits.

For a linear P of N outputs, K inputs and G groups, b bits a code:

    P.qweight   int32 [K b / 32, N]    code k of output n, lowest bits first along K
    P.qzeros    int32 [G, N b / 32]    zero points, lowest bits first along N
    P.scales    float16 [G, N]         W[n, k] = scales[g, n] * (q[k, n] - z[g, n])
    P.g_idx     int32 [K]              g of each input: k // group_size, or in act order another

Version 2 stores z, version 1 z - 1, of which there are three conventions where z is 0:

    GPTQModel            the word minus 0x11111111, with a borrow: its neighbour is one less
    Neural Compressor    the field modulo 2^b
    AutoRound            never: z is raised to 1

Symmetric zero points are all 2^(b-1): which version a file has is then read from the fields,
because there are files with the wrong label. Source: GPTQModel 7.7, utils/model.py; the program
named in `meta.quantizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.reference.errors import notice
from planish.reference.files.entries import require_entry
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats.stored import (
    Source,
    Stored,
    choose_scheme,
    grouping,
    linears_with,
    scale_type,
)
from planish.reference.files.formats.words import WORDS, unpack_fields
from planish.reference.files.safetensors import TensorEntry
from planish.reference.grids import SYMMETRIC_ZERO

KINDS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 4, 8)
METHODS = ("gptq",)
FORMATS = (None, "gptq", "gptq_v2")


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is gptq, and the layout GPTQ's own."""
    own = values.get("checkpoint_format", values.get("format")) in FORMATS
    return values.get("quant_method") in METHODS and own


def made_by(source: Source) -> str:
    """The program and version that the config names."""
    meta = source.values.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    if isinstance(quantizer, list) and quantizer:
        return str(quantizer[0])
    return str(quantizer or source.values.get("provider") or "")


def linears(source: Source) -> list[str]:
    return linears_with(source, "qweight")


def read(source: Source, prefix: str) -> Stored:
    """One linear; CheckpointError if its tensors or the config contradict each other."""
    bits, cols, rows = check_shapes(source, prefix)
    groups = source.entries[f"{prefix}.scales"].shape[0]
    order = read_order(source, prefix, cols, groups)
    fields = {**scale_type(source, f"{prefix}.scales"), **grouping(source, prefix, cols, groups)}
    check_group_size(source, prefix, fields["group_size"], cols)
    words = source.entries[f"{prefix}.qweight"]
    symmetric = is_symmetric(source, prefix, bits, rows)

    def codes() -> np.ndarray:
        found = unpack_fields(words.map().T, bits, cols)  # [N, K]
        return found if order is None else found[:, order]

    def scale() -> np.ndarray:
        return source.entries[f"{prefix}.scales"].map().T

    def zeros() -> np.ndarray:
        return zero_points(source, prefix, bits, rows).T

    stored: dict[str, Any] = {"shape": (rows, cols), "codes": codes, "scale": scale}
    if bits == 8 and fields["group_size"] == -1:
        fields["scale_dtype"] = "float32"
    if bits == 8 and symmetric:
        fields["full_range"] = fields["group_size"] == -1
        stored["codes"] = lambda: (codes() ^ np.uint8(128)).view(np.int8)
    elif bits == 8:
        fields |= {"symmetric": False, "offset": True}
        stored["offset"] = lambda: -scale().astype(np.float32) * zeros().astype(np.float32)
    elif symmetric:
        stored["codes"] = lambda: codes() + np.uint8(SYMMETRIC_ZERO - 2 ** (bits - 1))
    else:
        fields["symmetric"], stored["zero_point"] = False, zeros
    if order is not None:
        fields["act_order"], stored["order"] = True, lambda: order
    scheme = choose_scheme(source, prefix, bits=8 if bits == 8 else 4, **fields)
    return Stored(scheme=scheme, **stored)


def check_shapes(source: Source, prefix: str) -> tuple[int, int, int]:
    """Bits, K and N of a linear, from its tensors, which must agree with each other."""
    scales = require_rank(source, f"{prefix}.scales", FLOATS)
    words = require_rank(source, f"{prefix}.qweight", WORDS)
    zeros = require_rank(source, f"{prefix}.qzeros", WORDS)
    groups, rows = scales.shape
    bits = next((b for b in BITS if zeros.shape[1] == rows * b // 32), None)
    if bits is None or rows * bits % 32 or 0 in (*words.shape, groups):
        found = f"{list(zeros.shape)} for {rows} outputs"
        raise source.refuse(f"{prefix}.qzeros", "wrong shape", "2, 4 or 8 bits each", found)
    require_entry(source, f"{prefix}.qzeros", WORDS, (groups, rows * bits // 32))
    require_entry(source, f"{prefix}.qweight", WORDS, (words.shape[0], rows))
    require_bits(source, prefix, bits)
    return bits, words.shape[0] * 32 // bits, rows


def require_rank(source: Source, name: str, dtypes: tuple[str, ...]) -> TensorEntry:
    """The entry of a matrix with one of these types."""
    entry = source.entries.get(name)
    shape = (0, 0) if entry is None or len(entry.shape) != 2 else entry.shape
    return require_entry(source, name, dtypes, shape)


def require_bits(source: Source, prefix: str, bits: int) -> None:
    """Raise ConfigError unless the config has these bits, for all linears or for some."""
    allowed = values_of(source, prefix, "bits")
    if allowed and bits not in allowed:
        raise source.bad("bits", f"{bits}, as {prefix} has", " or ".join(map(str, allowed)))


def check_group_size(source: Source, prefix: str, size: int, cols: int) -> None:
    """Raise ConfigError unless the config has this group size, for all linears or for some."""
    allowed = values_of(source, prefix, "group_size")
    whole = size == -1 and any(one == -1 or one >= cols for one in allowed)
    if allowed and not whole and size not in allowed:
        found = " or ".join(map(str, allowed))
        raise source.bad("group_size", f"{size}, as {prefix} has", found)


def values_of(source: Source, prefix: str, name: str, kind: type = int) -> list[Any]:
    """What the config says of a linear, where `extra_config` names it; else all that it may mean.

    That is the value for all linears, and those of its exceptions (`dynamic`, `extra_config`),
    whose patterns are not matched: the tensors decide.
    """
    values = source.values
    exceptions = [values.get(key) for key in ("extra_config", "dynamic")]
    named = exceptions[0].get(prefix) if isinstance(exceptions[0], dict) else None
    if isinstance(named, dict) and type(named.get(name)) is kind:
        return [named[name]]
    owners = [values, *(o for some in exceptions if isinstance(some, dict) for o in some.values())]
    found = [owner.get(name) for owner in owners if isinstance(owner, dict)]
    return [value for value in found if type(value) is kind]


def read_order(source: Source, prefix: str, cols: int, groups: int) -> np.ndarray | None:
    """The inputs sorted by group, int32 [K]; None if they are in order. Negative ids count back."""
    name = f"{prefix}.g_idx"
    if name not in source.entries:
        return None
    ids = require_entry(source, name, ("I32", "I64"), (cols,)).map().astype(np.int64)
    ids = np.where(ids < 0, ids + groups, ids)
    size = grouping(source, prefix, cols, groups)["group_size"]
    plain = np.arange(cols) // (cols if size == -1 else size)
    if np.array_equal(ids, plain):
        return None
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], plain):
        raise source.refuse(name, "bad value", f"{groups} groups of {size} inputs", "other groups")
    return order.astype(np.int32)


def stored_fields(source: Source, prefix: str, bits: int, rows: int) -> np.ndarray:
    """The zero points as stored, uint8 [G, N]."""
    return unpack_fields(source.entries[f"{prefix}.qzeros"].map(), bits, rows)


def is_symmetric(source: Source, prefix: str, bits: int, rows: int) -> bool:
    """Whether all zero points are 2^(b-1), by version 1 or by version 2, whichever is declared."""
    fields = stored_fields(source, prefix, bits, rows)
    middle = 2 ** (bits - 1)
    same = int(fields[0, 0]) if fields.min() == fields.max() else -1
    declared = values_of(source, prefix, "sym", bool)
    if same == middle - is_version_1(source):
        return True
    if same in (middle - 1, middle) and any(declared):
        version = 1 if same == middle - 1 else 2
        notice(f"{source.path}: {prefix}: zero points of version {version}, whatever is declared")
        return True
    if declared and all(declared):
        expected = f"all {middle - 1} or all {middle}, as sym says"
        raise source.refuse(f"{prefix}.qzeros", "bad value", expected, "others")
    return False


def is_version_1(source: Source) -> bool:
    """Whether z - 1 is stored."""
    named = source.values.get("checkpoint_format", source.values.get("format"))
    return bool(named != "gptq_v2")


def zero_points(source: Source, prefix: str, bits: int, rows: int) -> np.ndarray:
    """The true zero points, uint8 [G, N]."""
    words = source.entries[f"{prefix}.qzeros"].map()
    if not is_version_1(source):
        return unpack_fields(words, bits, rows)
    if made_by(source).startswith("gptqmodel"):  # the word was decreased as one number
        ones = np.uint32(sum(1 << place for place in range(0, 32, bits)))
        return unpack_fields(np.ascontiguousarray(words).view(np.uint32) + ones, bits, rows)
    return unpack_fields(words, bits, rows) + np.uint8(1) & np.uint8(2**bits - 1)
