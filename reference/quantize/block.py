"""Quantize one block by a recipe's methods, one after another.

float block -> methods that rescale it (awq, teq) -> static scales -> the method that rounds
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference.model.weights import Block, block_linears, split_expert
from planish.reference.quantize.clip import clip_absmax
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.observe import ABSMAX, ChannelAbsmax
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runtime import NUMPY, Runtime


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
    return runtime.step(rounding)(job, block), block


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
