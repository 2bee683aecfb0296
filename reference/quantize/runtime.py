"""What executes a quantization: NumPy by default; fast/quantize/runtime.py has the jitted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from planish.reference.errors import RecipeError
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.hidden import Store
from planish.reference.quantize.methods import METHODS, Step
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.report import Report, no_report
from planish.reference.quantize.runner import NUMPY_RUNNER, Runner


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs the samples, faster steps of some methods by name, and what shows the progress.

    report: gets the facts of each finished block. memory_budget: bytes of the samples' hidden
    states in memory, the rest is on the disk; None for no limit. ahead: how many blocks are in
    memory and quantized, each on a thread, where none needs another's result (ahead.py).
    """

    runner: Runner = NUMPY_RUNNER
    steps: Mapping[str, Step] = field(default_factory=dict)
    progress: Progress = no_progress
    report: Report = no_report
    memory_budget: int | None = None
    ahead: int = 1

    def step(self, method: str) -> Step:
        """The step of a method: the faster one, if there is one.

        Raises RecipeError for a method that is trained, because NumPy has no gradients.
        """
        step = self.steps.get(method, METHODS[method].step)
        if step is None:
            raise RecipeError("is trained, which needs --engine fast", name="method", found=method)
        return step

    def check_methods(self, recipe: Recipe) -> None:
        """Raise RecipeError for a method of the recipe that has no step here."""
        for method in recipe.methods if recipe.quantizes_blocks else ():
            self.step(method)

    def storing(self, directory: Path) -> Runtime:
        """This runtime with hidden states in memory up to the budget, the rest in a directory."""
        if self.memory_budget is None:
            return self
        return replace(self, runner=self.runner.storing(Store(self.memory_budget, directory)))


NUMPY = Runtime()
