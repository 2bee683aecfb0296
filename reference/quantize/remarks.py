"""What a grid could not hold as it was asked to, counted over a model and told once."""

from __future__ import annotations

import numpy as np

from planish.reference.errors import notice
from planish.reference.grids import int8_scale
from planish.reference.linear import QuantizedWeight
from planish.reference.quantize.recipe import Recipe


class Remarks:
    """Linears with scales too large or too small for their type, and rows below INT8's floor."""

    def __init__(self, recipe: Recipe):
        self.scale_dtype = np.dtype(recipe.scale_dtype)
        self.wide: list[str] = []  # linears
        self.floored: dict[str, int] = {}  # linear -> rows
        self.nothing = recipe.bits is not None  # is quantized

    def see(self, name: str, w: np.ndarray, quantized: QuantizedWeight) -> None:
        """Look at one linear's weight [N, K] and what became of it."""
        self.nothing = False
        if quantized.bits == 4:
            self.wide += [name] if quantized.scale.dtype != self.scale_dtype else []
            return
        at_floor = np.broadcast_to(quantized.scale == int8_scale(np.float32(0)), (len(w), 1))[:, 0]
        if rows := int(w[at_floor].any(axis=1).sum()):
            self.floored[name] = rows

    def tell(self) -> None:
        """One notice for each kind of remark."""
        if self.nothing:
            notice("nothing is quantized: every linear is to be ignored")
        if self.wide:
            problem = f"do not fit {self.scale_dtype.name} and are stored as float32"
            notice(f"scales of {_counted(self.wide)} {problem}; the first is {self.wide[0]}")
        if self.floored:
            rows, first = sum(self.floored.values()), next(iter(self.floored))
            where = f"{rows} in {_counted([*self.floored])}, the first in {first}"
            notice(f"rows of weights below INT8's floor of 1e-05 become near zeros: {where}")


def _counted(linears: list[str]) -> str:
    return f"{len(linears)} linear{'s' * (len(linears) > 1)}"
