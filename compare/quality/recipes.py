"""What a recipe costs: perplexity, KL divergence, agreement, bytes on disk, tokens per second.

Every figure is taken through an engine, on the same windows of the same text, beside the float32
model's logits (SPEC 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.compare.bench.engines import decode_seconds
from planish.fast.session.engine import Engine
from planish.reference.text.evaluate import Agreement, agreement, summarize, window_nll


@dataclass(frozen=True)
class Quality:
    """One row of the table. `delta` is the perplexity's distance from float's."""

    name: str
    perplexity: float
    standard_error: float
    delta: float
    mean_kl: float  # nats per token
    top1: float
    size: int  # bytes of the directory's tensors
    tokens_per_second: float


def measure(
    name: str,
    engine: Engine,
    windows: Sequence[Sequence[int]],
    expected: Sequence[np.ndarray],
    directory: Path,
    float_perplexity: float | None = None,
) -> Quality:
    """One recipe's row; `expected` are the float model's logits of each window."""
    found = [engine.forward(window) for window in windows]
    nll = [window_nll(logits, window) for logits, window in zip(found, windows, strict=True)]
    summary = summarize(np.concatenate(nll), sum(map(len, windows)), len(windows), len(windows[0]))
    same = merge([agreement(a, b) for a, b in zip(expected, found, strict=True)])
    baseline = summary.perplexity if float_perplexity is None else float_perplexity
    return Quality(
        name,
        summary.perplexity,
        summary.standard_error,
        summary.perplexity - baseline,
        same.mean_kl,
        same.top1,
        stored_bytes(directory),
        decode_speed(engine, windows[0]),
    )


def merge(parts: Sequence[Agreement]) -> Agreement:
    """The agreement over windows of equal length."""
    return Agreement(
        float(np.mean([p.mean_kl for p in parts])),
        max(p.max_kl for p in parts),
        float(np.mean([p.top1 for p in parts])),
    )


def stored_bytes(directory: Path) -> int:
    """Bytes of the weights files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def decode_speed(engine: Engine, window: Sequence[int], steps: int = 40, runs: int = 4) -> float:
    """Tokens per second behind all of a window but its end: the median, after one warm-up."""
    prompt = list(window[: len(window) - steps])
    rates = [steps / decode_seconds(engine, [prompt], steps) for _ in range(runs)]
    return float(np.median(rates[1:]))


def table(rows: Sequence[Quality]) -> str:
    """Markdown."""
    lines = [
        "| recipe | perplexity | delta | KL (nats) | top-1 | size | decode |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.perplexity:.3f} ± {row.standard_error:.3f} | {row.delta:+.3f} |"
            f" {row.mean_kl:.5f} | {row.top1:.1%} | {row.size / 1e6:.2f} MB |"
            f" {row.tokens_per_second:.0f} tok/s |"
        )
    return "\n".join(lines)
