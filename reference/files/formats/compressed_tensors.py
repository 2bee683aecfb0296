"""compressed-tensors (llm-compressor, AutoRound, vLLM's own): integers of 2 to 8 bits, and FP8.

For a linear P of N outputs, K inputs and G groups, by the tensors that it has:

    P.weight_packed       int32 [N, ceil(K b / 32)]    code + 2^(b-1), lowest bits first along K
    P.weight_shape        int64 [2]                    N, K
    P.weight_zero_point   int32 [ceil(N b / 32), G]    + 2^(b-1), packed along N; asymmetric only
                          int8 [N, G]                  -8..7, of 4 bits that are not packed
    P.weight              int8 [N, K]                  codes that are not packed, also of 4 bits
                          float8 [N, K]                a float model: weight * weight_scale
    P.weight_scale        [N, G], [N, 1] or [1], FP8 also in blocks; bfloat16, float16 or float32
    P.input_scale         [1], static activations
    P.input_zero_point    int8 [1], if they are asymmetric: x ~ (code - zero point) * scale

The scheme comes from `config_groups`, the group from the linear's name. Codes use -128, and scales
in bfloat16 are widened to float32, so the program's own weights in bfloat16 are ours, rounded.
Source: compressed-tensors 0.20, compressors/pack_quantized/helpers.py, quantization/quant_args.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from planish.reference.files.entries import require_entry
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats import fp8
from planish.reference.files.formats.config_groups import check_config, find_group
from planish.reference.files.formats.gptq import require_rank
from planish.reference.files.formats.stored import (
    Source,
    Stored,
    choose_scheme,
    grouping,
    linears_with,
    scale_type,
)
from planish.reference.files.formats.words import WORDS, unpack_fields, words_for
from planish.reference.files.safetensors import TensorEntry
from planish.reference.grids import SYMMETRIC_ZERO

KINDS = (
    *("weight_packed", "weight_shape", "weight_zero_point", "weight", "weight_scale"),
    *("input_scale", "input_zero_point", "weight_g_idx", "output_scale"),
)


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is compressed-tensors."""
    return values.get("quant_method") == "compressed-tensors"


def made_by(source: Source) -> str:
    return f"compressed-tensors {source.values.get('version') or ''}".strip()


def linears(source: Source) -> list[str]:
    check_config(source)
    return linears_with(source, "weight_scale")


def read(source: Source, prefix: str) -> Stored:
    """One linear; CheckpointError or ConfigError for what planish does not compute."""
    group = find_group(source, prefix)
    if f"{prefix}.weight_packed" in source.entries:
        return read_packed(source, prefix, group)
    weight = require_rank(source, f"{prefix}.weight", ("I8", "F8_E4M3"))
    if weight.dtype == "F8_E4M3":
        return fp8.read_scaled(source, prefix, "weight_scale")
    return read_plain(source, prefix, group)


def read_packed(source: Source, prefix: str, group: Mapping[str, Any]) -> Stored:
    """Codes in words. 4 bits with an even K are, byte for byte, planish's canonical packing."""
    bits = group["weights"]["num_bits"]
    words = require_rank(source, f"{prefix}.weight_packed", WORDS)
    rows, cols = read_shape(source, prefix, words.shape, bits)
    scale = require_rank(source, f"{prefix}.weight_scale", FLOATS)
    groups = scale.shape[1]
    if scale.shape[0] != rows or groups == 0:
        name, found = f"{prefix}.weight_scale", list(scale.shape)
        raise source.refuse(name, "wrong shape", f"{rows} rows", found)
    zeros = read_zeros(source, prefix, (rows, groups), bits)
    require_trivial_order(source, prefix, cols, groups)
    fields = fields_of(source, prefix, group, cols, groups)
    arrays = arrange_codes(lambda: unpack_fields(words.map(), bits, cols), bits, fields, zeros)
    if bits == 4 and cols % 2 == 0:
        packed = lambda: words.map().view(np.uint8)[:, : cols // 2]  # noqa: E731
        arrays |= {"codes": packed, "packed": True}
    if fields.get("offset"):
        arrays["offset"] = lambda: times(scale.map(), zeros)
    return Stored(
        scheme=choose_scheme(source, prefix, **fields),
        shape=(rows, cols),
        scale=lambda: widen(scale),
        **arrays,
    )


def times(scale: np.ndarray, zeros: Callable[[], np.ndarray] | None) -> np.ndarray:
    """-scale * z, exact in float32: 11 bits times 8."""
    assert zeros is not None
    return -scale.astype(np.float32) * zeros().astype(np.float32)


def arrange_codes(
    unsigned: Callable[[], np.ndarray],
    bits: int,
    fields: dict[str, Any],
    zeros: Callable[[], np.ndarray] | None,
) -> dict[str, Any]:
    """The arrays of codes 0..2^b - 1 on the grid of 4 or of 8 bits; extends `fields`."""
    middle = 2 ** (bits - 1)
    if zeros is None and bits <= 4:
        shift = np.uint8(SYMMETRIC_ZERO - middle)
        return {"codes": lambda: unsigned() + shift}
    if zeros is None:
        return {"codes": lambda: (unsigned().astype(np.int16) - middle).astype(np.int8)}
    fields["symmetric"] = False
    if bits <= 4:
        return {"codes": unsigned, "zero_point": zeros}
    fields["offset"] = True
    fields.pop("full_range", None)
    return {"codes": unsigned}


def read_plain(source: Source, prefix: str, group: Mapping[str, Any]) -> Stored:
    """Codes as int8 [N, K], of 8 bits, or of 4 that are not packed (W4A8)."""
    bits = group["weights"]["num_bits"]
    weight = source.entries[f"{prefix}.weight"]
    rows, cols = weight.shape
    scale = source.entries[f"{prefix}.weight_scale"]
    one = scale.shape in ((1,), (1, 1), ())
    if not one:
        require_rank(source, f"{prefix}.weight_scale", FLOATS)
        require_entry(source, f"{prefix}.weight_scale", FLOATS, (rows, scale.shape[1]))
    elif scale.dtype not in FLOATS:
        require_entry(source, f"{prefix}.weight_scale", FLOATS, scale.shape)
    if 0 in (rows, cols, *scale.shape):
        raise source.refuse(f"{prefix}.weight", "wrong shape", "weights", list(weight.shape))
    groups = 1 if one else scale.shape[1]
    zeros = read_plain_zeros(source, prefix, (rows, groups), bits)
    fields = fields_of(source, prefix, group, cols, groups) | {"symmetric": zeros is None}
    if one and bits == 8 and rows > 1:
        fields["granularity"] = "per_tensor"
    many = one and bits == 4
    stored: dict[str, Any] = {
        "scale": lambda: np.broadcast_to(widen(scale), (rows, 1)) if many else widen(scale)
    }
    if one and not many:
        stored["scale"] = lambda: widen(scale).reshape(1, 1)
    stored |= input_arrays(source, prefix, group)
    limit = 2 ** (bits - 1)

    def codes() -> np.ndarray:
        found = weight.map()
        if bits == 8:
            return found
        if found.min() < -limit or found.max() >= limit:
            expected = f"codes {-limit}..{limit - 1}"
            raise source.refuse(f"{prefix}.weight", "bad value", expected, "others")
        return (found + np.int8(SYMMETRIC_ZERO)).astype(np.uint8)

    scheme = choose_scheme(source, prefix, **fields)
    return Stored(scheme=scheme, shape=(rows, cols), codes=codes, zero_point=zeros, **stored)


def input_arrays(
    source: Source, prefix: str, group: Mapping[str, Any]
) -> dict[str, Callable[[], np.ndarray]]:
    """The scale and the zero point of static inputs."""
    found: dict[str, Callable[[], np.ndarray]] = {}
    if group["activation"] == "static":
        scale = require_one(source, f"{prefix}.input_scale")
        found["input_scale"] = lambda: widen(scale).astype(np.float32).reshape(1)
    if not group["input_zero_point"]:
        refuse_zeros(source, f"{prefix}.input_zero_point")
        return found
    zero = require_one(source, f"{prefix}.input_zero_point", ("I8",))
    return found | {"input_zero_point": lambda: zero.map().reshape(1)}


def fields_of(
    source: Source, prefix: str, group: Mapping[str, Any], cols: int, groups: int
) -> dict[str, Any]:
    """The fields of a scheme: bits, groups, activations. The config must agree with the tensors."""
    weights = group["weights"]
    fields = {"activation": group["activation"], **grouping(source, prefix, cols, groups)}
    size, whole = weights.get("group_size"), fields["group_size"] == -1
    agrees = size in (None, -1) or size >= cols if whole else size == fields["group_size"]
    if not agrees:
        raise source.bad("group_size", f"{fields['group_size']}, as {prefix} has", size)
    grouped = not whole
    fields["bits"] = 4 if weights["num_bits"] <= 4 else 8
    if group["input_zero_point"]:
        fields["input_zero_point"] = True
    if fields["bits"] == 4 or grouped:
        fields |= scale_type(source, f"{prefix}.weight_scale")
    elif not grouped:
        fields["full_range"] = True
    return fields


def widen(scale: TensorEntry) -> np.ndarray:
    """Scales in float16 as they are, others in float32, which holds them exactly."""
    found = scale.map()
    return found if scale.dtype == "F16" else found.astype(np.float32)


def read_shape(source: Source, prefix: str, packed: tuple[int, ...], bits: int) -> tuple[int, int]:
    """N and K, by `weight_shape`, which must fit the words; without it K fills them."""
    name, rows = f"{prefix}.weight_shape", packed[0]
    if name not in source.entries:
        return rows, packed[1] * 32 // bits
    numbers = require_entry(source, name, ("I64", "I32"), (2,)).map()
    found = int(numbers[0]), int(numbers[1])
    if found[0] != rows or found[1] < 1 or words_for(found[1], bits) != packed[1]:
        expected = f"{rows} rows of {packed[1]} words of {bits}-bit codes"
        raise source.refuse(name, "bad value", expected, list(found))
    return found


def read_zeros(
    source: Source, prefix: str, shape: tuple[int, int], bits: int
) -> Callable[[], np.ndarray] | None:
    """The zero points, uint8 [N, G], packed along N, or one by one; None if there are none."""
    name, (rows, groups) = f"{prefix}.weight_zero_point", shape
    if name not in source.entries:
        return None
    if source.entries[name].dtype == "I8":
        plain = require_entry(source, name, ("I8",), shape)
        middle = 2 ** (bits - 1)
        return lambda: (plain.map().astype(np.int16) + middle).astype(np.uint8)
    packed = require_entry(source, name, WORDS, (words_for(rows, bits), groups))
    return lambda: unpack_fields(packed.map().T, bits, rows).T


def read_plain_zeros(
    source: Source, prefix: str, shape: tuple[int, int], bits: int
) -> Callable[[], np.ndarray] | None:
    """The zero points of codes that are not packed, uint8 [N, G]; None if all are 0, as in INT8."""
    entry = source.entries.get(f"{prefix}.weight_zero_point")
    four = bits == 4 and entry is not None and entry.shape == shape and entry.map().any()
    if not four:
        refuse_zeros(source, f"{prefix}.weight_zero_point")
        return None
    name = f"{prefix}.weight_zero_point"
    found = require_entry(source, name, ("I8",), shape).map()
    if found.min() < -SYMMETRIC_ZERO or found.max() >= SYMMETRIC_ZERO:
        raise source.refuse(name, "bad value", "-8..7", "others")
    return lambda: (found + np.int8(SYMMETRIC_ZERO)).astype(np.uint8)


def refuse_zeros(source: Source, name: str) -> None:
    """Refuse zero points of codes that are not packed or of inputs, unless all are 0."""
    entry = source.entries.get(name)
    if entry is not None and entry.map().any():
        expected = "zeros: symmetric INT8"
        raise source.refuse(name, "cannot be read", expected, "asymmetric INT8")


def require_one(source: Source, name: str, dtypes: tuple[str, ...] = FLOATS) -> TensorEntry:
    """The entry of a single number."""
    entry = source.entries.get(name)
    shape = (1,) if entry is None or entry.shape not in ((1,), (1, 1), ()) else entry.shape
    return require_entry(source, name, dtypes, shape)


def require_trivial_order(source: Source, prefix: str, cols: int, groups: int) -> None:
    """Refuse `actorder: group` of old versions, unless the groups are in order."""
    name = f"{prefix}.weight_g_idx"
    if name not in source.entries:
        return
    ids = require_entry(source, name, ("I32", "I64"), (cols,)).map()
    size = grouping(source, prefix, cols, groups)["group_size"]
    if not np.array_equal(ids, np.arange(cols) // (cols if size == -1 else size)):
        expected = "inputs in order: actorder weight, static or null"
        raise source.refuse(name, "cannot be read", expected, "actorder group")
