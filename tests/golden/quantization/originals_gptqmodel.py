"""GPTQModel (PyPI gptqmodel) on a whole model: sequential, blocks fed by quantized blocks.

Its own reordering of columns (act_group_aware) is off, since GPTQ has none. The directory that it
writes is read here (checkpoint_format gptq, version 1: codes packed along K, zero points less 1).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with one it does not start

import numpy as np
import torch
from gptqmodel import GPTQModel, QuantizeConfig
from measure import Coded, Result
from safetensors.numpy import load_file

GROUP_SIZE = 32


def quantize_model(directory: Path, ids: np.ndarray, **changes: Any) -> Result:
    """Symmetric or not (`sym`); `desc_act` orders the columns."""
    given = {"bits": 4, "group_size": GROUP_SIZE, "damp_percent": 0.01, **changes}
    config = QuantizeConfig(act_group_aware=False, **given)
    model = GPTQModel.load(str(directory), config, device="cpu", dtype=torch.float32)
    rows = [torch.from_numpy(row.astype(np.int64))[None] for row in ids]
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    model.quantize(samples, batch_size=1, calibration_data_min_length=2)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return read(load_file(Path(folder) / "model.safetensors"))


def read(tensors: dict[str, np.ndarray]) -> Result:
    """Codes, scales and zero points of every linear in a directory's tensors."""
    end = ".qweight"
    names = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    return Result(linears={name: read_linear(tensors, name) for name in sorted(names)})


def read_linear(tensors: dict[str, np.ndarray], name: str) -> Coded:
    """qweight int32 [K/8, N], qzeros int32 [G, N/8], scales [G, N] -> [N, K] and [N, G]."""
    packed, zeros = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
    in_order = np.arange(8 * packed.shape[0]) // GROUP_SIZE
    if (tensors[f"{name}.g_idx"] != in_order).any():
        raise ValueError(f"{name}: the groups are not neighbours")
    codes = unpack(packed.T).astype(np.uint8)
    zero = ((unpack(zeros) + 1) & 15).astype(np.uint8).T
    return Coded(codes=codes, scale=tensors[f"{name}.scales"].T, zero=zero, group_size=GROUP_SIZE)


def unpack(words: np.ndarray) -> np.ndarray:
    """int32 [R, C] -> eight nibbles each, the lowest first, [R, 8 C]."""
    nibbles = words.astype(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    return nibbles.reshape(words.shape[0], -1)
