"""What executes a quantization: NumPy by default; fast/quantize/runtime.py has the jitted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.methods import METHODS, Step
from planish.reference.quantize.runner import NUMPY_RUNNER, Runner


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs the samples, faster steps of some methods by name, and what shows the progress."""

    runner: Runner = NUMPY_RUNNER
    steps: Mapping[str, Step] = field(default_factory=dict)
    progress: Progress = no_progress

    def step(self, method: str) -> Step:
        """The step of a method: the faster one, if there is one."""
        return self.steps.get(method, METHODS[method].step)


NUMPY = Runtime()
