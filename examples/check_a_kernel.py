"""Check a kernel of your own against the definition: python examples/check_a_kernel.py

W4A8 in NumPy, one scale for each row of x and group of inputs. Change a line, such as the order of
the groups or the rounding, and see what check_linear finds.
"""

import numpy as np

import planish


def unpack(codes: np.ndarray, in_features: int) -> np.ndarray:
    """uint8 [N, ceil(K / 2)] -> int32 [N, K]: the low nibble holds the even input."""
    both = np.stack([codes & 15, codes >> 4], axis=2)  # [N, ceil(K / 2), 2]
    return both.reshape(len(codes), -1)[:, :in_features].astype(np.int32)


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [T, g] -> codes int32 [T, g] and scale float32 [T, 1]."""
    absmax = np.abs(x).max(axis=1, keepdims=True)
    scale = np.maximum(absmax, np.float32(1e-5)) / np.float32(127)
    return np.clip(np.rint(x / scale), -127, 127).astype(np.int32), scale


def w4a8(a: planish.LinearInputs) -> np.ndarray:
    """y[t, n] = sum over g of (f32(sum_k xq (q - z)) * scale[n, g]) * a_scale[t, g], + bias."""
    weights = unpack(a.codes, a.in_features)  # [N, K]
    size = a.in_features if a.group_size == -1 else a.group_size
    y = np.zeros((len(a.x), a.out_features), np.float32)
    for g, start in enumerate(range(0, a.in_features, size)):
        span = slice(start, start + size)
        codes, a_scale = quantize_rows(a.x[:, span])  # [T, g], [T, 1]
        zero = 8 if a.zero_point is None else a.zero_point[:, g, None].astype(np.int32)
        total = codes @ (weights[:, span] - zero).T  # [T, N], exact in int32
        y += (total.astype(np.float32) * a.scale[:, g].astype(np.float32)) * a_scale
    return y if a.bias is None else y + a.bias


print(planish.check_linear(w4a8, bits=4, activation="per_group"), "cases agree, bit for bit")
