"""INT8 attention (SPEC 3), judged from its output: what codes can have flipped, and what they move.

A subject shows the output of attention and no code inside it, as a kernel does. The reference is
computed over the keys and values that the subject has written, so only two kinds of code can
differ, those of queries and those of weights, and each only near a tie:

    q8    within TIE_OF_A_HEAD of one (a rotated query is a sum of two products). A flip moves the
          score of slot s by q_scale * k_scale * |k8| / divisor.
    p8    the weight w / p_scale has the error of an exponential, WEIGHT_ERROR, and of the scores
          that such a flip moves. p8 may be any integer between the rint of the least and that of
          the largest.

Each output may differ by what these codes move, sum_s |change of p8| |v8| p_scale / total, and by
the tolerance of a softmax in floats. In most rows nothing is near a tie and the tolerance is the
second alone, a fraction of what one code of one weight moves, so that a wrong rounding is found. A
flip of a query's code is bounded, not enumerated: the few rows with one have a wide tolerance.

Where values are one-hot, the output shows the codes of the weights themselves: `show_codes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.compare.conformance.module_checks import SOFTMAX_TOLERANCE
from planish.compare.conformance.tolerances import TIE_OF_A_HEAD
from planish.reference.grids import INT8_MAX, int8_codes
from planish.reference.model.attention import (
    HeadCodes,
    exponentials,
    group_heads,
    int8_attention,
    quantize_heads,
    scale_weights,
)
from planish.reference.model.config import Alibi

WEIGHT_ERROR = 1e-4  # relative, of w / p_scale: two exponentials of scores of up to 50


@dataclass(frozen=True, kw_only=True)
class Attended:
    """The reference's output of INT8 attention, and by how much a right one may differ.

    expected, allowed: [T, H * Hd]. weights: codes p8 [K, H/K, T, S]; ties: by how much each may
    differ.
    """

    expected: np.ndarray
    allowed: np.ndarray
    weights: np.ndarray
    ties: np.ndarray


def attend_codes(
    q: np.ndarray,
    keys: HeadCodes,
    values: HeadCodes,
    mask: np.ndarray,
    scores: tuple[float, Alibi | None, float | None],
    q_scale: np.ndarray | None = None,
) -> Attended:
    """INT8 attention of rotated q [T, H, Hd] over found keys and values [S, K, Hd].

    scores: divisor, biases and cap. q_scale: a calibrated scale [1].
    """
    q8 = quantize_heads(q, q_scale)
    e = exponentials(q8, keys, mask, *scores)
    w, p_scale = scale_weights(e, values)
    relative = WEIGHT_ERROR + np.expm1(2 * bound_score_flips(q, q8, keys, scores[0]))
    weights, ties = int8_codes(w, p_scale), count_ties(w / p_scale, relative)
    moved = ties @ np.abs(values.codes.transpose(1, 0, 2)[:, None].astype(np.float32))
    moved = moved * (p_scale * values.scale if values.static else p_scale)
    moved = moved / np.sum(e, axis=-1, keepdims=True)  # [K, H/K, T, Hd]
    expected = int8_attention(q8, keys, values, mask, *scores)
    flips = moved.transpose(2, 0, 1, 3).reshape(expected.shape)
    allowed = flips + row_errors(relative, expected) + SOFTMAX_TOLERANCE * np.abs(expected).max()
    return Attended(expected=expected, allowed=allowed, weights=weights, ties=ties)


def bound_score_flips(q: np.ndarray, q8: HeadCodes, keys: HeadCodes, divisor: float) -> np.ndarray:
    """How much flips of near-tied codes of a query can move one of its scores, [K, H/K, T, 1]."""
    ratio = q / q8.scale
    near = np.abs(ratio - np.floor(ratio) - np.float32(0.5)) < TIE_OF_A_HEAD  # [T, H, Hd]
    near &= np.abs(ratio) < INT8_MAX + 0.5
    kv_heads = keys.codes.shape[1]
    sizes = np.abs(keys.codes.transpose(1, 2, 0)[:, None].astype(np.float32))  # [K, 1, Hd, S]
    moved = group_heads(near.astype(np.float32), kv_heads) @ sizes  # [K, H/K, T, S]
    q_scale = q8.scale if q8.static else group_heads(q8.scale, kv_heads)
    moved = moved * q_scale * keys.scale.transpose(1, 2, 0)[:, None] / np.float32(divisor)
    bound: np.ndarray = np.minimum(moved.max(axis=-1, keepdims=True), np.float32(5))
    return bound


def count_ties(ratio: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """By how many steps the codes of weights w / p_scale may differ, given their relative error."""
    least, largest = np.rint(ratio / (1 + relative)), np.rint(ratio * (1 + relative))
    largest = np.minimum(largest, INT8_MAX)
    middle = np.rint(ratio)
    steps: np.ndarray = np.maximum(largest - middle, middle - least).astype(np.float32)
    return steps


def row_errors(relative: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """What flips of q8 move through the sum of a row's exponentials, [T, H * Hd]."""
    tokens, heads = len(expected), int(np.prod(relative.shape[:2]))
    share = (relative - WEIGHT_ERROR).transpose(2, 0, 1, 3).reshape(tokens, heads, 1)
    errors: np.ndarray = (np.abs(expected).reshape(tokens, heads, -1) * share).reshape(
        expected.shape
    )
    return errors


def show_codes(context: np.ndarray, kv_heads: int, slots: int) -> np.ndarray:
    """The codes p8 [K, H/K, T, S] from the output [T, H, Hd] over one-hot values, v8[s, s] = 127.

    All scales of the values are equal, so the largest code of each row is 127.
    """
    grouped = group_heads(context, kv_heads)[..., :slots]
    largest = np.max(grouped, axis=-1, keepdims=True)
    codes: np.ndarray = np.rint(grouped / largest * np.float32(INT8_MAX))
    return codes
