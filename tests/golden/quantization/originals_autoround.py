"""AutoRound (PyPI auto-round) on a whole model, with its defaults but for what a caller changes.

Scales are kept in float32 and nothing runs in bfloat16, so that its codes explain its weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from auto_round import AutoRound
from measure import Coded, Result, code

GROUP_SIZE = 32


def quantize_model(
    model: Any,
    tokenizer: Any,
    ids: np.ndarray,
    sym: bool,
    group_size: int = GROUP_SIZE,
    **given: Any,
) -> Result:
    """A float model in memory, which is changed. `iters`, `lr` and `seed` are AutoRound's own."""
    scheme = {"bits": 4, "group_size": group_size, "sym": sym, "data_type": "int", "act_bits": 16}
    rows = [torch.from_numpy(row.astype(np.int64))[None] for row in ids]
    rounding = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=scheme,
        dataset=[{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows],
        nsamples=len(rows),
        seqlen=ids.shape[1],
        device_map="cpu",
        enable_torch_compile=False,
        scale_dtype="fp32",
        amp=False,
        **given,
    )
    changed, _ = rounding.quantize()
    blocks = changed.model.layers.named_modules(prefix="model.layers")
    linears = {name: m for name, m in blocks if isinstance(m, torch.nn.Linear)}
    return Result(linears={name: code_linear(m, group_size) for name, m in linears.items()})


def code_linear(linear: torch.nn.Linear, group_size: int) -> Coded:
    """The codes of a weight that AutoRound left dequantized, from its scales and zero points."""
    values = linear.weight.detach().float().numpy()
    scale = linear.scale.float().numpy().reshape(values.shape[0], -1)
    zero = linear.zp
    if not isinstance(zero, torch.Tensor):
        zero = torch.full(scale.shape, float(zero))
    return code(values, scale, zero.float().numpy().reshape(scale.shape), group_size)
