"""Count what the grids could not represent, over a whole model, and report it once."""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.reference.errors import notice
from planish.reference.grids import int8_scale
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantized import QuantizedWeight


class Remarks:
    """Counts linears whose scales do not fit float16, and rows below INT8's floor."""

    def __init__(self, recipe: Recipe):
        self.wide: list[str] = []  # linears
        self.floored: dict[str, int] = {}  # linear -> rows
        self.nothing = recipe.quantizes  # so far

    def see(self, name: str, w: np.ndarray, quantized: QuantizedWeight) -> None:
        """Compare one linear's weight [N, K] with its quantized form."""
        self.nothing = False
        if quantized.scheme.bits == 4:
            fits = quantized.scale.dtype == np.dtype(quantized.scheme.scale_dtype)
            self.wide += [] if fits else [name]
            return
        at_floor = np.broadcast_to(quantized.scale == int8_scale(np.float32(0)), (len(w), 1))[:, 0]
        if rows := int(w[at_floor].any(axis=1).sum()):
            self.floored[name] = rows

    def facts(self) -> dict[str, Any]:
        """The counts, in JSON."""
        return {"wide": self.wide, "floored": self.floored, "nothing": self.nothing}

    def add(self, facts: dict[str, Any]) -> None:
        """Add the counts of other linears."""
        self.wide += facts["wide"]
        self.floored |= facts["floored"]
        self.nothing &= facts["nothing"]

    def report(self) -> None:
        """Give one notice for each kind of remark."""
        if self.nothing:
            notice("nothing is quantized: --ignore matches every linear")
        if self.wide:
            problem = "do not fit float16 and are stored as float32"
            notice(f"scales of {_count_linears(self.wide)} {problem}; the first is {self.wide[0]}")
        if self.floored:
            rows, first = sum(self.floored.values()), next(iter(self.floored))
            where = f"{rows} in {_count_linears([*self.floored])}, the first in {first}"
            notice(f"rows of weights below INT8's floor of 1e-05 become near zeros: {where}")


def _count_linears(linears: list[str]) -> str:
    return f"{len(linears)} linear{'s' * (len(linears) > 1)}"
