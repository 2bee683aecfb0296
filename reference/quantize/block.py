"""Quantize one block by a recipe's methods, one after another.

float block -> methods that rescale it (awq, teq) -> static scales -> the method that rounds
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference.errors import QuantizationError
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.layers import Norm
from planish.reference.model.transformer import ROTATED
from planish.reference.model.weights import Block, block_linears, block_norms, split_expert
from planish.reference.quantize.clip import clip_absmax
from planish.reference.quantize.job import BlockJob, static_scale
from planish.reference.quantize.observe import ABSMAX, ChannelAbsmax, block_name
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantized import QuantizedWeight


def quantize_block(
    job: BlockJob, block: Block, recipe: Recipe, runtime: Runtime = NUMPY
) -> tuple[Block, Block]:
    """Quantize a block, smoothed if the recipe smooths; also the float block that was rounded."""
    *rescaling, rounding = recipe.methods
    given = block
    for method in rescaling:
        block = runtime.step(method)(job, block)
    if any(scheme and scheme.activation == "static" for scheme in job.schemes.values()):
        seen = job.absmax if block is given else {}
        absmax = with_unseen_experts(block, seen) if seen else observe_absmax(job, block)
        absmax = clip_absmax(job, block, absmax) if recipe.clip_inputs else absmax
        job = replace(job, absmax=absmax)
    quantized = runtime.step(rounding)(job, block)
    require_finite_block(job, given, quantized)
    return quantized, block


def require_finite_block(job: BlockJob, given: Block, block: Block) -> None:
    """Raise QuantizationError, naming the linear or norm, where a method has made NaN or Inf.

    What the float block has already is its own: rounding refuses it, and a linear that stays in
    float keeps it.
    """
    before = block_linears(given) | block_norms(given)
    for part, found in (block_linears(block) | block_norms(block)).items():
        for kind, value in made_by_methods(before[part], found).items():
            if not np.isfinite(value).all():
                name = job.names.get(part, f"{block_name(job.names)}: {part}")
                problem = f"the method leaves NaN or Inf in its {kind}"
                raise QuantizationError(problem, name=name)


def made_by_methods(before: Linear | Norm, found: Linear | Norm) -> dict[str, np.ndarray]:
    """The float arrays of a module that are not those of the module before."""
    arrays: dict[str, np.ndarray | None] = {}
    for kind in ("weight", "bias", "activation_scale"):
        value = getattr(found, kind, None)
        if isinstance(value, QuantizedWeight):
            arrays["scale"] = value.scale
        elif value is not getattr(before, kind, None):
            arrays[kind] = value
    return {kind: value for kind, value in arrays.items() if value is not None}


def calibrate_attention(job: BlockJob, block: Block) -> AttentionScales:
    """max(absmax, 1e-5) / 127 of rotated queries and keys, and of values, on all samples (SPEC 3).

    Of the float block as it is rounded: smoothed and rescaled.
    """
    found, _ = job.runner.observe(
        job.config, block, job.float_inputs, job.names, ABSMAX, parts=ROTATED
    )
    q, k, v = (static_scale(found[name]) for name in ROTATED)
    return AttentionScales(q=q, k=k, v=v)


def observe_absmax(job: BlockJob, block: Block) -> ChannelAbsmax:
    """The absmax of each channel of the linears' inputs; a static scale comes from it."""
    absmax, _ = job.runner.observe(job.config, block, job.float_inputs, job.names, ABSMAX)
    return with_unseen_experts(block, absmax)


def with_unseen_experts(block: Block, absmax: ChannelAbsmax) -> ChannelAbsmax:
    """Give each expert that no calibration token selected the largest absmax of the others."""
    largest: ChannelAbsmax = {}
    for part, seen in absmax.items():
        general, _ = split_expert(part)
        largest[general] = np.maximum(largest[general], seen) if general in largest else seen
    unseen = [part for part in block_linears(block) if part not in absmax]
    return absmax | {part: largest[split_expert(part)[0]] for part in unseen}
