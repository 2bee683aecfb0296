"""python -m planish.methods: the methods side by side, on every model and grid that is named.

    python -m planish.methods --models pocket/model --rows rows.json --validation pocket/heldout.txt

prints a table of KL, perplexity and top-1 for each model. Each row is kept in the file --rows as
soon as it is measured; a later run measures only what is missing there, so it may be interrupted,
and may add models, methods and seeds. docs/methods.md has its tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from planish.auto import Texts, make_study, make_texts
from planish.command import notices_printed
from planish.compare.quality.methods import Grid, Row, measure_cell, tables
from planish.compare.quality.trial import Goal, Study
from planish.joining import BAD_INPUT
from planish.opening import prepare_calibration, prepare_kernels
from planish.reference.errors import PlanishError, PromptError
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.json import read_json
from planish.reference.quantize.settings import PRESETS
from planish.terminal.flags import add_kernels_flag

LISTS = {  # flag: default, meaning
    "models": ("pocket/model", "directories"),
    "methods": ("rtn,awq,teq,gptq,signround", "methods, also as awq+gptq or gptq-no_act_order"),
    "recipes": ("W4A16,W4A8", "recipes"),
    "group_sizes": ("32,128", "inputs that share a scale"),
    "rules": ("signed,minmax", "INT4 rules"),
}


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    for name, (default, meaning) in LISTS.items():
        words = f"{meaning}, separated by commas (default: {default})"
        parser.add_argument(f"--{name}", default=default, metavar="A,B", help=words)
    parser.add_argument("--seeds", type=int, default=1, help="of each method that is trained")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="of signround")
    parser.add_argument("--iterations", type=int, help="of each method that is trained")
    words = "text to calibrate on (default: the embedded one)"
    parser.add_argument("--calibration", metavar="FILE", help=words)
    words = "text to measure on (default: the end of the calibration text)"
    parser.add_argument("--validation", metavar="FILE", help=words)
    parser.add_argument("--validation_tokens", type=int, metavar="N", help="(default: 16384)")
    parser.add_argument("--samples", type=int, default=128, help="(default: 128)")
    parser.add_argument("--sequence_length", type=int, default=128, help="(default: 128)")
    parser.add_argument("--rows", metavar="FILE", help="JSON: what is measured, and was before")
    words = "print what --rows has, and measure nothing"
    parser.add_argument("--print_only", action="store_true", help=words)
    add_kernels_flag(parser)
    parser.set_defaults(seed=None)
    return parser


def main(words: Sequence[str]) -> int:
    args = make_parser().parse_args(words)
    try:
        with notices_printed():
            run(args)
    except (PlanishError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure what is missing, one model after another, and print the tables."""
    grid, rows = grid_of(args), read_rows(args.rows)
    prepare_calibration(None)
    native = prepare_kernels(args.kernels, None)
    for path in split(args.models):
        rows, shown = measure_model(args, path, grid, rows, native)
        if not shown:
            raise PromptError("has no row of this grid", name="rows", found=args.rows)
        print(f"### {path}\n\n{describe(shown)}\n\n{tables(shown)}\n", flush=True)


def grid_of(args: argparse.Namespace) -> Grid:
    """The grid of the flags. Raises RecipeError for a recipe that there is not."""
    sizes = [number(size) for size in split(args.group_sizes)]
    if args.seeds < 1:
        raise PromptError("bad value", name="seeds", expected="1 or more", found=args.seeds)
    lists: Any = {name: split(getattr(args, name)) for name in ("methods", "recipes", "rules")}
    training = {"preset": args.preset, "iterations": args.iterations}
    grid = Grid(group_sizes=sizes, seeds=args.seeds, **lists, **training)
    for cell in grid.cells():
        cell.make_recipe(grid.facts_of(cell.method))
    return grid


def split(text: str) -> list[str]:
    """a,b -> [a, b]."""
    return [word.strip() for word in text.split(",") if word.strip()]


def number(text: str) -> int:
    """A group size; PromptError for what is no number."""
    try:
        return int(text)
    except ValueError:
        name, expected = "group_sizes", "numbers, as 32,128"
        raise PromptError("bad value", name=name, expected=expected, found=repr(text)) from None


def measure_model(
    args: argparse.Namespace, path: str, grid: Grid, rows: list[Row], native: bool
) -> tuple[list[Row], list[Row]]:
    """All rows with this model's, and this model's. Saves each new one."""
    source = open_checkpoint(path)
    samples, windows, about = make_texts(Texts.from_flags(args), source)
    wanted = {"model": path, **about}
    cells = [({**wanted, **asdict(c), **grid.facts_of(c.method)}, c) for c in grid.cells()]
    with tempfile.TemporaryDirectory(prefix="planish-methods-") as directory:
        study: Study | None = None
        for facts, cell in cells:
            if find(rows, facts) is None and not args.print_only:
                study = study or study_of(source, samples, windows, (Path(directory), native))
                figures = measure_cell(study, cell, grid.facts_of(cell.method))
                rows = [*rows, {**facts, **figures}]
                save_rows(args.rows, rows)
                print(f"{path} {cell.name}: {figures['kl']:.5f}", file=sys.stderr, flush=True)
    found = (find(rows, facts) for facts, _ in cells)
    return rows, [row for row in found if row is not None]


def study_of(source: Checkpoint, samples: Any, windows: Any, where: tuple[Path, bool]) -> Study:
    """A study of KL; where: the directory of its candidates, and whether it has the kernels."""
    study: Study = make_study(source, samples, windows, *where)
    return replace(study, goal=Goal(metric="kl", tolerance=None))


def find(rows: Sequence[Row], facts: Row) -> Row | None:
    """The row that has all these facts."""
    return next((row for row in rows if facts.items() <= row.items()), None)


def read_rows(path: str | None) -> list[Row]:
    """What an earlier run has measured; empty without a file."""
    if path is None or not Path(path).exists():
        return []
    rows: list[Row] = read_json(Path(path), PromptError)["rows"]
    return rows


def save_rows(path: str | None, rows: Sequence[Row]) -> None:
    """Replace the file at once, so that an interruption leaves the old or the new one."""
    if path is not None:
        new = Path(f"{path}.new")
        new.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        new.replace(path)


def describe(rows: Sequence[Row]) -> str:
    """What was calibrated and measured on, and the float model's perplexity."""
    first = rows[0]
    where = f"calibration: {first['calibration']}; validation: {first['validation']}"
    return f"{where}; perplexity in float {first['float_perplexity']:.3f}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
