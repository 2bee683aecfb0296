"""Linears on every grid, and how they come back from a format: written, and read by planish."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.files.export import WRITERS
from planish.reference.files.export.codes import refine
from planish.reference.files.export.protocol import Facts
from planish.reference.files.formats import READERS
from planish.reference.files.formats.stored import Source
from planish.reference.files.formats.translate import translate
from planish.reference.files.safetensors import read_entries, write_tensors
from planish.reference.grids import SYMMETRIC_RULES, int4_codes, int4_parameters, quantize_int8
from planish.reference.linear import Linear
from planish.reference.quantized import QuantizedWeight, from_codes
from planish.reference.scheme import Scheme, int4, int8

P = "model.layers.0.mlp.up_proj"
READER_OF = {"gptq": "gptq", "gptq_v2": "gptq", "awq": "awq", "mlx": "mlx"}


@dataclass(frozen=True)
class Read:
    """A linear as planish reads it: its scheme, and its arrays by their kind."""

    scheme: Scheme
    arrays: dict[str, np.ndarray]


def random_weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Weights [N, K] with outliers, a group of zeros and groups of one sign."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    w[rng.random(w.shape) < 0.01] *= 9
    w[0, :32], w[1, :32], w[2, :32] = 0, np.abs(w[1, :32]), -np.abs(w[2, :32])
    return w


def int4_weight(w: np.ndarray, size: int, rule: str, dtype: str = "float16") -> QuantizedWeight:
    """INT4 codes of w by a rule."""
    scale, zero = int4_parameters(w, size, rule, np.dtype(dtype))
    symmetric = rule in SYMMETRIC_RULES
    scheme = int4(size, symmetric=symmetric, scale_dtype=str(scale.dtype))
    return from_codes(int4_codes(w, scale, zero, size), scale, zero, scheme)


def int8_weight(w: np.ndarray, granularity: str = "per_channel") -> QuantizedWeight:
    """INT8 codes of w for float inputs, with scales that are float16 numbers."""
    rows = "per_row" if granularity == "per_channel" else granularity
    codes, scale = quantize_int8(w, rows)
    short = scale.astype(np.float16).astype(np.float32)
    return from_codes(codes, short, None, int8(granularity))


def written(weight: QuantizedWeight, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of the linear P by their names, and the quantization_config."""
    form = WRITERS[name]
    assert form.refuse(weight.scheme, weight.shape) is None
    scheme = form.regroup(weight.scheme, weight.shape)
    tensors = form.tensors(Linear(refine(weight, scheme)), scheme)
    facts = Facts(program="planish 0", dtype="float16", shapes={P: weight.shape})
    values = form.config({P: scheme, "lm_head": None}, facts)["quantization_config"]
    return {f"{P}.{kind}": np.ascontiguousarray(x) for kind, x in tensors.items()}, values


def read_back(weight: QuantizedWeight, name: str, path: Path) -> Read:
    """The linear as planish reads what a format's writer made of it."""
    tensors, values = written(weight, name)
    write_tensors(path / "model.safetensors", tensors)
    entries = read_entries(path / "model.safetensors")
    source = Source(path=path, values=values, entries=entries)
    reader = READER_OF[name]
    assert READERS[reader].detect(values)
    found, declared, _ = translate(reader, READERS[reader], source)
    assert declared is not None
    arrays = {one.rpartition(".")[2]: entry.map() for one, entry in found.items()}
    return Read(declared.targets[P], arrays)


def arrays_of(weight: QuantizedWeight) -> dict[str, np.ndarray]:
    """The arrays of a canonical weight by the kinds of planish's format."""
    arrays = {
        "weight": weight.codes,
        "weight_scale": weight.scale,
        "weight_zero_point": weight.zero_point,
        "weight_offset": weight.offset,
        "weight_permutation": weight.permutation,
    }
    return {kind: array for kind, array in arrays.items() if array is not None}


def assert_same(found: Read, weight: QuantizedWeight) -> None:
    """The same scheme, types and bits; INT8 rows may have been read as of full range."""
    narrow = replace(found.scheme, full_range=weight.scheme.full_range)
    assert narrow == weight.scheme
    expected = arrays_of(weight)
    assert found.arrays.keys() == expected.keys()
    for kind, array in expected.items():
        assert found.arrays[kind].dtype == array.dtype, kind
        np.testing.assert_array_equal(found.arrays[kind], array, err_msg=kind)
