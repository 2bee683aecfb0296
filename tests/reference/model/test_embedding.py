"""Rows of an embedding: those of an array, or of codes that become floats row by row."""

import numpy as np

from planish.reference.model.embedding import embedding_rows
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme


def test_rows_of_an_array_are_float32():
    embed = np.arange(6, dtype=np.float16).reshape(3, 2)
    found = embedding_rows(embed, np.array([2, 0, 2]))
    assert found.dtype == np.float32
    assert found.tolist() == [[4, 5], [0, 1], [4, 5]]


def test_rows_of_codes_are_dequantized():
    codes = np.arange(9, dtype=np.uint8).reshape(3, 3)
    embed = QuantizedWeight(
        codes=pack_nibbles(codes),
        scale=np.array([[1], [2], [0.5]], np.float16),
        offset=np.array([[0], [-8], [1]], np.float32),
        scheme=Scheme(bits=4, symmetric=False, offset=True, scale_dtype="float16"),
        shape=(3, 3),
    )
    assert embedding_rows(embed, np.array([1, 2])).tolist() == [[-2, 0, 2], [4, 4.5, 5]]
