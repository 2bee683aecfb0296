"""AWQ (AutoAWQ, GPTQModel, AutoRound): 4 bits, the layouts of its kernels gemm and gemv.

For a linear P of N outputs, K inputs and G groups, W[n, k] = scale * (q - z):

    gemm    P.qweight int32 [K, N / 8]    P.qzeros int32 [G, N / 8]    P.scales float16 [G, N]
            eight columns a word, in the order 0 2 4 6 1 3 5 7
    gemv    P.qweight int32 [N, K / 8]    P.qzeros int32 [N, Z]        P.scales float16 [N, 8 Z]
            lowest bits first, along K and along the groups; what is beyond G is padding

Zero points are stored as they are; 8 everywhere is a symmetric linear. Source: AutoAWQ 0.2.9,
awq/modules/linear/gemm.py, gemv.py and awq/utils/packing_utils.py. The layouts gemv_fast and marlin
are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.reference.files.entries import require_entry
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats.gptq import check_group_size, require_bits, require_rank
from planish.reference.files.formats.stored import (
    Source,
    Stored,
    choose_scheme,
    grouping,
    linears_with,
    scale_type,
)
from planish.reference.files.formats.words import WORDS, unpack_awq, unpack_fields
from planish.reference.grids import num_groups
from planish.reference.scheme import Scheme

KINDS = ("qweight", "qzeros", "scales")
VERSIONS = ("gemm", "gemv")
EIGHTS = np.uint32(0x88888888)


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is awq, or gptq with the layout of AWQ."""
    label = values.get("checkpoint_format", values.get("format"))
    return values.get("quant_method") == "awq" or (
        values.get("quant_method") == "gptq" and label in VERSIONS
    )


def made_by(source: Source) -> str:
    """AWQ's writers do not name themselves, but GPTQModel does."""
    meta = source.values.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    return str(quantizer[0]) if isinstance(quantizer, list) and quantizer else ""


def linears(source: Source) -> list[str]:
    return linears_with(source, "qweight")


def version(source: Source) -> str:
    """The layout, gemm or gemv; ConfigError for others."""
    values = source.values
    label = values.get("version", values.get("checkpoint_format", values.get("format", "gemm")))
    label = label.lower() if isinstance(label, str) else label
    if label not in VERSIONS:
        raise source.bad("version", f"one of {', '.join(VERSIONS)}", repr(label))
    return str(label)


def read(source: Source, prefix: str) -> Stored:
    """One linear; CheckpointError if its tensors or the config contradict each other."""
    return read_gemm(source, prefix) if version(source) == "gemm" else read_gemv(source, prefix)


def read_gemm(source: Source, prefix: str) -> Stored:
    """One linear in the layout gemm."""
    scales = require_rank(source, f"{prefix}.scales", FLOATS)
    words = require_rank(source, f"{prefix}.qweight", WORDS)
    (groups, rows), cols = scales.shape, words.shape[0]
    zeros = require_entry(source, f"{prefix}.qzeros", WORDS, (groups, rows // 8))
    require_entry(source, f"{prefix}.qweight", WORDS, (cols, rows // 8))
    if rows % 8 or 0 in (rows, cols, groups):
        raise source.refuse(f"{prefix}.scales", "wrong shape", "a multiple of 8 outputs", rows)
    symmetric = all_eights(zeros.map())
    return Stored(
        scheme=choose_awq_scheme(source, prefix, cols, groups, symmetric),
        shape=(rows, cols),
        codes=lambda: unpack_awq(words.map()).T,
        scale=lambda: scales.map().T,
        zero_point=None if symmetric else lambda: unpack_awq(zeros.map()).T,
    )


def read_gemv(source: Source, prefix: str) -> Stored:
    """One linear in the layout gemv, without its padding."""
    scales = require_rank(source, f"{prefix}.scales", FLOATS)
    words = require_rank(source, f"{prefix}.qweight", WORDS)
    rows, cols, size = words.shape[0], 8 * words.shape[1], source.values.get("group_size")
    if type(size) is not int or (size != -1 and size < 1) or 0 in (rows, cols):
        raise source.bad("group_size", "the group size of gemv", repr(size))
    groups = num_groups(cols, size)
    width = scales.shape[1] // 8
    if groups > scales.shape[1]:
        found = list(scales.shape)
        raise source.refuse(f"{prefix}.scales", "wrong shape", f"{groups} groups", found)
    require_entry(source, f"{prefix}.scales", FLOATS, (rows, 8 * width))
    zeros = require_entry(source, f"{prefix}.qzeros", WORDS, (rows, width))
    return Stored(
        scheme=choose_awq_scheme(source, prefix, cols, groups, symmetric=False),
        shape=(rows, cols),
        codes=lambda: unpack_fields(words.map(), 4, cols),
        scale=lambda: scales.map()[:, :groups],
        zero_point=lambda: unpack_fields(zeros.map(), 4, groups),
    )


def all_eights(words: np.ndarray) -> bool:
    """Whether all nibbles of some words are 8: the codes are then symmetric."""
    return bool((np.asarray(words).view(np.uint32) == EIGHTS).all())


def choose_awq_scheme(
    source: Source, prefix: str, cols: int, groups: int, symmetric: bool
) -> Scheme:
    """The scheme of a linear; bits and group size as the config says."""
    fields = grouping(source, prefix, cols, groups)
    require_bits(source, prefix, 4)
    check_group_size(source, prefix, fields["group_size"], cols)
    fields |= scale_type(source, f"{prefix}.scales")
    return choose_scheme(source, prefix, bits=4, symmetric=symmetric, **fields)
