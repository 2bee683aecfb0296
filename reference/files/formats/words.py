"""Codes packed into 32-bit words, as GPTQ, AWQ, compressed-tensors and MLX write them."""

from __future__ import annotations

import numpy as np

WORDS = ("I32", "U32")  # safetensors types
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # field i of an AWQ word is column AWQ_ORDER[i] of its eight


def unpack_fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Words [R, W] of little-endian bit streams -> the first `count` fields of each, uint8.

    Field i of a row is at bits bits * i of the row; it may cross words where bits does not divide
    32. Source: pack_quantized/helpers.py of compressed-tensors; ops.cpp of MLX.
    """
    stream = np.ascontiguousarray(words).view(np.uint8)  # [R, 4 W]
    if bits == 8:
        return stream[:, :count]
    if bits in (2, 4):
        shifts = range(0, 8, bits)
        fields = np.stack([stream >> shift & (2**bits - 1) for shift in shifts], axis=2)
        return fields.reshape(len(stream), -1)[:, :count]
    each = np.unpackbits(stream, axis=1, bitorder="little", count=count * bits)
    fields = np.packbits(each.reshape(-1, count, bits), axis=2, bitorder="little")
    return fields[:, :, 0]


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """Words [R, W] of eight nibbles in AWQ's order -> uint8 [R, 8 W]."""
    fields = unpack_fields(words, 4, 8 * words.shape[1]).reshape(len(words), -1, 8)
    plain = np.empty_like(fields)
    plain[:, :, list(AWQ_ORDER)] = fields
    return plain.reshape(len(words), -1)


def words_for(count: int, bits: int) -> int:
    """How many 32-bit words `count` fields take."""
    return -(-count * bits // 32)


def pack_fields(fields: np.ndarray, bits: int) -> np.ndarray:
    """Fields uint8 [R, C] of 4 or 8 bits -> words int32 [R, ceil(C bits / 32)], lowest bits first.

    The last word is filled with zeros. Inverse: unpack_fields.
    """
    rows, count = fields.shape
    whole = np.zeros((rows, words_for(count, bits) * 32 // bits), np.uint8)
    whole[:, :count] = fields
    stream = whole if bits == 8 else whole[:, ::2] | whole[:, 1::2] << 4
    return np.ascontiguousarray(stream).view("<i4")
