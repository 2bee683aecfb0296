"""How a block becomes codes on its grids, one method a file.

rtn        round to nearest
gptq       the columns that follow make up for a column's error
awq        scale channels by their activations, clip groups by output error
teq        scale channels by training
signround  train how each weight rounds, and the range of each group

A method is a row of METHODS with a step: step(job, block) -> block. A method that rounds replaces
the weight of every linear that has a scheme by codes; one that does not only rescales the float
block, and another rounds after it. A recipe names a chain of them, as `awq+gptq`; a chain that
does not end in rounding ends in rtn. docs/adding-a-method.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planish.reference.model.weights import Block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.awq import quantize_block as awq
from planish.reference.quantize.methods.gptq import quantize_block as gptq
from planish.reference.quantize.methods.rtn import quantize_block as rtn

Step = Callable[[BlockJob, Block], Block]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A step, and what the pipeline must know of it.

    step:        None if it is trained, which only fast/quantize can
    rounds:      it ends in codes; else it rescales or changes the float block
    calibrates:  it needs the samples' hidden states: job.inputs and job.targets
    targets:     it reads job.float_inputs or job.targets; if no method of a recipe does, only a few
                 samples pass through the float blocks
    sequential:  its inputs come from the quantized blocks before it, not from the float ones
    settings:    the fields of Settings that it reads; a recipe refuses the others
    """

    step: Step | None = None
    rounds: bool = True
    calibrates: bool = False
    targets: bool = True
    sequential: bool = False
    settings: tuple[str, ...] = ()


METHODS = {
    "rtn": Method(step=rtn, targets=False, settings=("search_range",)),
    "gptq": Method(
        step=gptq,
        calibrates=True,
        targets=False,
        sequential=True,
        settings=("act_order", "true_sequential", "damping"),
    ),
    "awq": Method(step=awq, rounds=False, calibrates=True),
    "teq": Method(
        rounds=False,
        calibrates=True,
        sequential=True,
        settings=("seed", "iterations"),
    ),
    "signround": Method(
        calibrates=True,
        sequential=True,
        settings=("seed", "preset", "iterations"),
    ),
}
