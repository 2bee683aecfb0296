"""What executes a quantization fast: the jitted runner, and the methods' jitted steps."""

from __future__ import annotations

from planish.fast.quantize.awq import quantize_block as awq
from planish.fast.quantize.gptq import quantize_block as gptq
from planish.fast.quantize.observe import Runner
from planish.fast.quantize.signround import quantize_block as signround
from planish.fast.quantize.teq import quantize_block as teq
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.methods import Step
from planish.reference.quantize.runtime import Runtime

STEPS: dict[str, Step] = {"awq": awq, "gptq": gptq, "teq": teq, "signround": signround}


def fast_runtime(native: bool = False, progress: Progress = no_progress) -> Runtime:
    """The runtime of `planish quantize`; native: use the kernels, which must be loaded."""
    return Runtime(runner=Runner(native), steps=STEPS, progress=progress)
