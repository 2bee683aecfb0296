"""Clip static activation scales: a smaller range where that costs less than it spares.

A static scale is absmax / 127 of a linear's input on the calibration text. One value a thousand
times the rest leaves these with a few codes. Here each linear's range is c times its absmax with
the c of least error, values beyond it saturating:

    error(c) = sum over tokens t and channels k of v_k (x_tk - q(x_tk; c absmax / 127))^2
    v_k      = sum over outputs n of W_nk^2
    c        = 2^(-j/4), j = 0 .. 40, down to a thousandth

This is the squared error of the output if the errors of different channels are uncorrelated. The
inputs are those of SAMPLES calibration samples, evenly spaced. In a layer of experts nothing is
clipped: few tokens reach an expert.

T tokens, K inputs.
"""

from __future__ import annotations

import numpy as np

from planish.reference.grids import int8_codes, int8_scale
from planish.reference.linear import float_weight
from planish.reference.model.weights import Block, Experts, block_linears
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.observe import ChannelAbsmax, Observer, spread

SHARES = tuple(2 ** (-j / 4) for j in range(41))
SAMPLES = 4


def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The inputs of two samples as one."""
    return np.concatenate([a, b])


INPUTS = Observer(measure=lambda x: x, merge=join)


def clip_absmax(job: BlockJob, block: Block, absmax: ChannelAbsmax) -> ChannelAbsmax:
    """The absmax of each channel, cut at each linear's best range, for static_scale."""
    static = {part for part, s in job.schemes.items() if s and s.activation == "static"}
    if isinstance(block.mlp, Experts) or not static:
        return absmax
    few = [job.float_inputs[i] for i in spread(len(job.float_inputs), SAMPLES)]
    inputs, _ = job.runner.observe(job.config, block, few, job.names, INPUTS, parts=static)
    linears = block_linears(block)
    cut = {}
    for part, x in inputs.items():
        weights = np.square(float_weight(linears[part]), dtype=np.float64).sum(axis=0)  # [K]
        largest = np.float32(absmax[part].max())
        cut[part] = np.minimum(absmax[part], best_share(x, largest, weights) * largest)
    return {**absmax, **cut}


def best_share(x: np.ndarray, largest: np.float32, weights: np.ndarray) -> np.float32:
    """c of least error for inputs x [T, K] whose absmax is `largest`; weights: v [K]."""
    errors = [range_error(x, np.float32(c) * largest, weights) for c in SHARES]
    return np.float32(SHARES[int(np.argmin(errors))])


def range_error(x: np.ndarray, largest: np.float32, weights: np.ndarray) -> float:
    """error(c), where c absmax is `largest`."""
    scale = int8_scale(largest)
    wrong = x - int8_codes(x, scale) * scale  # [T, K]
    return float(np.square(wrong, dtype=np.float64).sum(axis=0) @ weights)
