"""The methods side by side: each on every grid, quantized and measured once, for docs/methods.md.

    grid of choices -> cells -> each quantized and measured -> rows -> tables, and where the order
    of the methods is not the expected one

A method that is trained has a row for each seed; its cell in a table is their mean ± deviation.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.compare.quality.order import Candidate
from planish.compare.quality.trial import Study, try_candidate
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.recipe import Recipe, recipe

BETTER = (("signround", "gptq"), ("gptq", "rtn"), ("awq", "rtn"))  # the first is expected to win
FIGURES = {
    "kl": ("KL(float || recipe), nats per token", "{:.5f}"),
    "perplexity": ("perplexity", "{:.3f}"),
    "top1": ("tokens whose likeliest successor is float's, %", "{:.1f}"),
}

Row = Mapping[str, Any]  # a cell's and the run's facts, and the figures


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The choices whose every combination is measured.

    methods: or chains, and words of their settings, as gptq-no_act_order. preset: of signround.
    iterations: of the methods that are trained; None for theirs.
    """

    recipes: Sequence[str]
    group_sizes: Sequence[int]
    rules: Sequence[str]
    methods: Sequence[str]
    seeds: int = 1
    preset: str = "default"
    iterations: int | None = None

    def cells(self) -> Iterator[Cell]:
        """Every combination; the methods in turn, so that each is seen early."""
        places = itertools.product(range(self.seeds), self.methods, self.recipes)
        for (seed, method, name), size, rule in itertools.product(
            places, self.group_sizes, self.rules
        ):
            if seed == 0 or "seed" in settings_of(method):
                yield Cell(recipe=name, group_size=size, rule=rule, method=method, seed=seed)

    def facts_of(self, method: str) -> dict[str, Any]:
        """The settings of training that a method reads, as a row keeps them."""
        given = {"preset": self.preset, "iterations": self.iterations}
        return {key: value for key, value in given.items() if key in settings_of(method)}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe of a grid, once."""

    recipe: str
    group_size: int
    rule: str
    method: str
    seed: int = 0

    @property
    def name(self) -> str:
        """W4A16-g32-minmax-gptq."""
        return f"{self.recipe}-g{self.group_size}-{self.rule}-{self.method}"

    def make_recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with the settings. Raises RecipeError for one that there is not."""
        seed: dict[str, Any] = {"seed": self.seed} if "seed" in settings_of(self.method) else {}
        return recipe(self.name, **seed, **settings)


def settings_of(method: str) -> set[str]:
    """The settings that a chain of methods reads, as awq+gptq-no_act_order; smooth reads none."""
    named = [METHODS[one] for one in method.split("-")[0].split("+") if one in METHODS]
    return {setting for one in named for setting in one.settings}


def measure_cell(study: Study, cell: Cell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Quantize and measure one cell: its figures; raises what quantize_checkpoint raises.

    The study's metric must be kl; top1 in percent.
    """
    chosen = Candidate(name=cell.name, recipe=cell.make_recipe(settings))
    found = try_candidate(study, chosen)
    shutil.rmtree(found.model.base.quantized.path)
    trial = found.trial
    return {
        "bits": trial.bits,
        "perplexity": trial.perplexity,
        "float_perplexity": trial.float_perplexity,
        "kl": trial.mean_kl,
        "kl_error": trial.error,
        "top1": 100 * trial.top1,
        "seconds": trial.seconds,
    }


def tables(rows: Sequence[Row]) -> str:
    """The rows of one model as a Markdown table for each figure, and what is out of order."""
    found = [f"{title}:\n\n{table(rows, figure)}" for figure, (title, _) in FIGURES.items()]
    return "\n\n".join([*found, describe_order(rows)])


def table(rows: Sequence[Row], figure: str) -> str:
    """One figure: a row for each grid, a column for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| | {' | '.join(methods)} |", f"| --- |{' ---: |' * len(methods)}"]
    for grid, cells in by_grid(rows).items():
        shown = (format_cell(cells.get(method, []), figure) for method in methods)
        lines.append(f"| {grid} | {' | '.join(shown)} |")
    return "\n".join(lines)


def by_grid(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Grid -> method -> its rows, one for each seed; in the order of the grids' names."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (row["recipe"], row["group_size"], row["rule"])):
        grid = f"{row['recipe']} g={row['group_size']} {row['rule']}"
        found.setdefault(grid, {}).setdefault(row["method"], []).append(row)
    return found


def format_cell(rows: Sequence[Row], figure: str) -> str:
    """The mean over the seeds, ± their standard deviation where there are several."""
    if not rows:
        return ""
    form, values = FIGURES[figure][1], [row[figure] for row in rows]
    deviation = f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + deviation


def describe_order(rows: Sequence[Row]) -> str:
    """Where a method that is expected to have the smaller KL has not, one a line."""
    methods = {row["method"] for row in rows}
    pairs = [pair for pair in BETTER if {*pair} <= methods]
    expected = ", ".join(f"{better} <= {worse}" for better, worse in pairs)
    lines = [
        f"* {grid}: {better} {mean_of(cells[better]):.5f}, {worse} {mean_of(cells[worse]):.5f}"
        for grid, cells in by_grid(rows).items()
        for better, worse in pairs
        if {better, worse} <= cells.keys() and mean_of(cells[better]) > mean_of(cells[worse])
    ]
    if not lines:
        return f"KL: {expected} in every row." if pairs else ""
    return f"KL: {expected}, except\n\n" + "\n".join(lines)


def mean_of(rows: Sequence[Row]) -> float:
    """The mean KL of a cell's rows."""
    return float(np.mean([row["kl"] for row in rows]))
