"""Rows of an embedding, which is an array or has the codes that another program stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference.quantized import QuantizedWeight, dequantize

BY_ROW = ("codes", "scale", "zero_point", "offset")  # arrays whose first axis is that of the rows


def embedding_rows(embed: np.ndarray | QuantizedWeight, tokens: np.ndarray) -> np.ndarray:
    """Rows [T, E] float32 of an embedding [V, E] for tokens [T].

    Codes are gathered first, so that only these rows become floats. A quantized embedding is
    canonical; its inputs are in order, and its scales are those of rows or of groups of a row.
    """
    if not isinstance(embed, QuantizedWeight):
        floats: np.ndarray = embed[tokens].astype(np.float32)
        return floats
    arrays = {name: getattr(embed, name) for name in BY_ROW}
    rows = {name: array[tokens] for name, array in arrays.items() if array is not None}
    return dequantize(replace(embed, shape=(len(tokens), embed.shape[1]), **rows))
