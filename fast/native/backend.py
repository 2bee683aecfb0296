"""The native backend: the functions of fast/model/backend.py, by the C++ kernels if they can."""

from planish.fast.native.attention import cached_attention as attention
from planish.fast.native.cache import empty_layer
from planish.fast.native.linear import gated, linear, project
from planish.fast.native.moe import mixture as moe
from planish.fast.native.norm import normalize
from planish.fast.native.sampling import can_sample, sample

__all__ = [
    "attention",
    "can_sample",
    "empty_layer",
    "gated",
    "linear",
    "moe",
    "normalize",
    "project",
    "sample",
]
