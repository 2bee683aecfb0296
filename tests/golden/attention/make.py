"""INT8 attention as torch computes it with fake quantization: python tests/golden/attention/make.py

SPEC 3 in floats. Operands are rounded to their grids and stay floats (torch.fake_quantize_*), the
products and the softmax are float64, and no integer is summed. Needs torch 2; the file that it
writes is committed. Every case draws other queries, keys and values.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
TOKENS, SLOTS, HEADS, KV_HEADS, WIDTH = 9, 40, 6, 2, 24  # the tokens are the last of the slots
SLOPES = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]
CASES = {
    "dynamic": {},
    "dynamic-window-cap": {"window": 12, "cap": 2.0},
    "dynamic-alibi": {"slopes": SLOPES},
    "static": {"static": True},
    "static-window-cap": {"static": True, "window": 12, "cap": 2.0},
    "static-alibi": {"static": True, "slopes": SLOPES},
}


def scale_of(x: torch.Tensor, static: bool) -> torch.Tensor:
    """max(absmax, 1e-5) / 127 of each token and head, or 0.9 of the tensor's: some are clipped."""
    largest = 0.9 * x.abs().max() if static else x.abs().amax(-1)
    return torch.clamp(largest, min=1e-5).div(127).expand(x.shape[:2]).contiguous()


def fake(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [T, heads, Hd] rounded to its grid, as floats."""
    rows = x.reshape(-1, x.shape[-1])
    zeros = torch.zeros(len(rows), dtype=torch.int32)
    given = rows, scale.reshape(-1), zeros, 0, -127, 127
    return torch.fake_quantize_per_channel_affine(*given).reshape(x.shape)


def scores_of(q: torch.Tensor, k: torch.Tensor, case: dict) -> torch.Tensor:
    """[H, T, S], masked."""
    k = k.repeat_interleave(HEADS // KV_HEADS, dim=1).double()
    scores = torch.einsum("thd,shd->hts", q.double(), k) / WIDTH**0.5
    position = torch.arange(SLOTS - TOKENS, SLOTS)[:, None]
    distance = position - torch.arange(SLOTS)[None]
    if "slopes" in case:
        scores = scores - torch.tensor(case["slopes"])[:, None, None] * distance
    if "cap" in case:
        scores = case["cap"] * torch.tanh(scores / case["cap"])
    seen = (distance >= 0) & (distance < case.get("window", SLOTS))
    return scores.masked_fill(~seen, -torch.inf)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: dict) -> dict:
    """The output [T, H * Hd], with the codes of the weights [H, T, S] and the scales."""
    static = case.get("static", False)
    scales = {name: scale_of(x, static) for name, x in {"q": q, "k": k, "v": v}.items()}
    q, k, v = (fake(x, scales[name]) for name, x in (("q", q), ("k", k), ("v", v)))
    e = torch.softmax(scores_of(q, k, case), -1)
    e = e / e.amax(-1, keepdim=True)
    v_scale = scales["v"].repeat_interleave(HEADS // KV_HEADS, dim=1).T[:, None].double()
    v = v.repeat_interleave(HEADS // KV_HEADS, dim=1).double()
    w = e if static else e * v_scale
    p_scale = torch.full_like(w[..., :1], 1 / 127) if static else w.amax(-1, keepdim=True) / 127
    p = torch.round(w / p_scale) * p_scale
    weights = p if static else p / v_scale
    context = torch.einsum("hts,shd->thd", weights, v) / e.sum(-1).T[..., None]
    codes = torch.round(w / p_scale).to(torch.int8)
    return {"context": context.reshape(TOKENS, -1).float(), "codes": codes, **scales}


def main() -> None:
    generator, arrays = torch.Generator().manual_seed(12), {}
    for name, case in CASES.items():
        shapes = {"q": (TOKENS, HEADS), "k": (SLOTS, KV_HEADS), "v": (SLOTS, KV_HEADS)}
        given = {x: torch.randn(*shape, WIDTH, generator=generator) for x, shape in shapes.items()}
        found = attend(*given.values(), case)
        scales = {f"{x}_scale": found.pop(x) for x in "qkv"}
        arrays |= {
            f"{name}/{key}": value.numpy() for key, value in (given | found | scales).items()
        }
    made_by = f"torch {torch.__version__}"
    np.savez_compressed(HERE / "int8.npz", made_by=made_by, cases=json.dumps(CASES), **arrays)


if __name__ == "__main__":
    main()
