"""A prompt in chunks of at most 512 tokens, each padded to one of thirteen sizes.

So prompts compile at most thirteen prefill programs and need memory for one chunk. Tokens per
second of a prompt of 2048 tokens, by chunk size (native kernels, 4 cores of an AMD EPYC Zen 5,
medians of 4 alternating rounds):

    chunk         128    256    512   1024   2048
    1.1B W4A8     890    928    948    937    900
    110M W8A8    5751   6780   7377   7429   5746
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.reference.model.transformer import PREFILL_CHUNK

SMALLEST_CHUNK = 8


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Token ids and positions int32 [1, T]; those after the first `count` are padding."""

    tokens: np.ndarray
    positions: np.ndarray
    count: int


def chunk_size(count: int) -> int:
    """The padded size of a chunk of `count` tokens: a power of two, or three quarters of one."""
    whole = max(SMALLEST_CHUNK, 1 << (count - 1).bit_length())
    return whole * 3 // 4 if whole > SMALLEST_CHUNK and count <= whole * 3 // 4 else whole


def padded_length(count: int) -> int:
    """Positions that the chunks of `count` tokens take, padding included."""
    whole, rest = divmod(count, PREFILL_CHUNK)
    return whole * PREFILL_CHUNK + (chunk_size(rest) if rest else 0)


def split_prompt(tokens: Sequence[int], first: int = 0) -> Iterator[Chunk]:
    """The chunks of a prompt, each padded by repeating its last token at its position.

    first: the position of the first token."""
    for start in range(0, len(tokens), PREFILL_CHUNK):
        chunk = np.asarray(tokens[start : start + PREFILL_CHUNK], np.int32)
        positions = np.arange(first + start, first + start + len(chunk), dtype=np.int32)
        padding = (0, chunk_size(len(chunk)) - len(chunk))
        padded = (np.pad(x, padding, mode="edge")[None] for x in (chunk, positions))
        yield Chunk(tokens=next(padded), positions=next(padded), count=len(chunk))
