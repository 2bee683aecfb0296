"""MLX affine (mlx-lm): 2, 3, 4, 5, 6 and 8 bits, with a float offset for each group.

    P.weight   uint32 [N, K b / 32]   codes, lowest bits first along K
    P.scales   [N, G]                 w = scales * q + biases
    P.biases   [N, G]                 bfloat16, float16 or float32; not P.bias, the linear's own

A bias that is a whole multiple of its scale is a zero point (offsets.py). Linears that have only
such biases are read without offsets: INT4 with zero points, or as symmetric if all are 2^(b-1).

Embeddings have codes, too, and keep them; lm_head has the same codes if it is tied to them.
The config has no quant_method but bits, group_size and mode, and exceptions by exact name. Source:
ops.cpp of MLX (affine_quantize), utils.py of mlx-lm 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.reference.files.entries import require_entry
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats.gptq import require_rank
from planish.reference.files.formats.offsets import to_float16, whole_zero_points
from planish.reference.files.formats.stored import (
    Compute,
    Source,
    Stored,
    choose_scheme,
    linears_with,
    scale_type,
)
from planish.reference.files.formats.words import unpack_fields
from planish.reference.grids import expand_groups

KINDS = ("weight", "scales", "biases")
BITS = (2, 3, 4, 5, 6, 8)
SIZES = (32, 64, 128)
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "embedding")


def detect(values: Mapping[str, Any]) -> bool:
    """Whether the config has bits and a group size but no quant_method, as MLX's has."""
    return "quant_method" not in values and {"bits", "group_size"} <= values.keys()


def made_by(source: Source) -> str:
    """MLX writes no version."""
    return "mlx" if source.values else ""


def linears(source: Source) -> list[str]:
    mode = source.values.get("mode", "affine")
    if mode != "affine":
        raise source.bad("mode", "affine", repr(mode))
    return linears_with(source, "scales")


def read(source: Source, prefix: str) -> Stored:
    """One linear, or an embedding as float32."""
    bits, size = settings(source, prefix)
    words = require_rank(source, f"{prefix}.weight", ("U32", "I32"))
    rows, cols = words.shape[0], words.shape[1] * 32 // bits
    if words.shape[1] * 32 % bits or cols % size or 0 in (rows, cols):
        expected = f"{bits}-bit codes in groups of {size}"
        raise source.refuse(f"{prefix}.weight", "wrong shape", expected, list(words.shape))
    scale = require_entry(source, f"{prefix}.scales", FLOATS, (rows, cols // size))
    offset = require_entry(source, f"{prefix}.biases", FLOATS, (rows, cols // size))

    def codes() -> np.ndarray:
        return unpack_fields(words.map(), bits, cols)

    def weights() -> np.ndarray:
        wide = (expand_groups(one.map().astype(np.float32), cols, size) for one in (scale, offset))
        product = codes().astype(np.float32) * next(wide)
        added: np.ndarray = product + next(wide)
        return added

    stored: dict[str, Any] = {"shape": (rows, cols), "codes": codes}
    fields: dict[str, Any] = {
        "bits": 4 if bits <= 4 else 8,
        "granularity": "per_group",
        "group_size": size,
    }
    zeros = whole_zero_points(scale.map(), offset.map(), fields["bits"])
    middle = zeros is not None and bool((zeros == 2 ** (fields["bits"] - 1)).all())
    if zeros is None or (bits > 4 and not middle):
        fields |= {"symmetric": False, "offset": True, **scale_type(source, f"{prefix}.scales")}
        stored["offset"] = lambda: offset.map().astype(np.float32)
    else:
        narrow = to_float16(scale.map().astype(np.float32)) is not None
        fields |= {"symmetric": middle, "scale_dtype": "float16" if narrow else "float32"}
        stored |= integer_arrays(codes, zeros, fields)
    scheme = choose_scheme(source, prefix, **fields)
    stored["scale"] = lambda: scale.map().astype(scheme.scale_dtype)
    linear = Stored(scheme=scheme, **stored)
    if prefix.rpartition(".")[2] in EMBEDDINGS:
        return Stored(shape=(rows, cols), codes=weights, head=linear)
    return linear


def integer_arrays(
    codes: Compute, zeros: np.ndarray, fields: Mapping[str, Any]
) -> dict[str, Compute]:
    """The codes and zero points, uint8 [N, G], of a linear whose biases are -z * scale.

    The zero points, which opening had to compute, are kept: a 32nd of the codes' bytes at g = 64.
    """
    if fields["bits"] == 8:
        return {"codes": lambda: (codes() ^ np.uint8(128)).view(np.int8)}
    return {} if fields["symmetric"] else {"zero_point": lambda: zeros}


def settings(source: Source, prefix: str) -> tuple[int, int]:
    """Bits and group size of a module: the exception under its name, or the config's."""
    own = source.values.get(prefix)
    own = own if isinstance(own, dict) else {}
    bits = own.get("bits", source.values.get("bits"))
    size = own.get("group_size", source.values.get("group_size"))
    size = 64 if size is None else size  # mlx's default
    if type(bits) is not int or bits not in BITS:
        raise source.bad("bits", f"one of {', '.join(map(str, BITS))}", repr(bits))
    if type(size) is not int or size not in SIZES:
        raise source.bad("group_size", f"one of {', '.join(map(str, SIZES))}", repr(size))
    if own.get("mode", "affine") != "affine":
        raise source.bad(f"{prefix}.mode", "affine", repr(own["mode"]))
    return bits, size
