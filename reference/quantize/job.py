"""What a method gets: one block's schemes, the samples' hidden states, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from planish.reference.errors import QuantizationError, notice
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.quantize.observe import ChannelAbsmax
from planish.reference.quantize.runner import NUMPY_RUNNER, Hidden, Runner
from planish.reference.quantize.settings import DEFAULTS, Settings
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """One block to quantize.

    schemes:       of each linear by its name in the block, None if it stays in float
    rule:          how symmetric INT4 scales are chosen (grids.INT4_RULES)
    names:         of the linears in the checkpoint, for errors and notes
    inputs:        hidden states [T, D] of each sample as the quantized blocks before this one
                   leave them; those of the float blocks if no method of the recipe is sequential;
                   empty without a calibration
    float_inputs:  as the float blocks leave them; of a few samples, evenly spaced, if no method of
                   the recipe reads more (Recipe.follows_floats)
    targets:       what this block, in float, makes of float_inputs
    absmax:        of each channel of the linears' inputs, for static activation scales; empty if
                   nobody has observed this block yet
    layer:         the block's number; with settings.seed it seeds what a method draws at random
    note:          reports what a user should know, such as experts without tokens
    """

    config: ModelConfig
    schemes: Mapping[str, Scheme | None]
    rule: str = "signed"
    settings: Settings = DEFAULTS
    names: Mapping[str, str] = field(default_factory=dict)
    runner: Runner = NUMPY_RUNNER
    inputs: Hidden = ()
    float_inputs: Hidden = ()
    targets: Hidden = ()
    absmax: ChannelAbsmax = field(default_factory=dict)
    layer: int = 0
    note: Callable[[str], None] = notice

    def name(self, part: str) -> str:
        """The linear's name in the checkpoint."""
        return self.names.get(part, part)

    def with_weight(self, part: str, layer: Linear, weight: QuantizedWeight) -> Linear:
        """The linear with its quantized weight and, if its scheme is static, the input's scale."""
        return with_weight(layer, weight, self.absmax.get(part), self.name(part))


def with_weight(
    layer: Linear, weight: QuantizedWeight, absmax: np.ndarray | None = None, name: str = "w"
) -> Linear:
    """A linear with a quantized weight; QuantizationError if a static scale has no absmax [K]."""
    quantized = replace(layer, weight=weight)
    if weight.scheme.activation != "static":
        return quantized
    if absmax is None:
        raise QuantizationError("static activations need a calibration", name=name)
    return replace(quantized, activation_scale=static_scale(absmax))


def static_scale(absmax: np.ndarray) -> np.ndarray:
    """max(absmax over all channels, 1e-5) / 127: the scale of a linear's input, float32 [1]."""
    return int8_scale(absmax.max()).reshape(1)
