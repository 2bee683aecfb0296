"""The portable backend: the functions of fast/model/backend.py, computed by XLA alone."""

from planish.fast.model.layers import normalize
from planish.fast.xla.attention import cached_attention as attention
from planish.fast.xla.cache import empty_layer
from planish.fast.xla.linear import gated, linear, project
from planish.fast.xla.moe import mixture as moe
from planish.fast.xla.sampling import can_sample, sample

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
