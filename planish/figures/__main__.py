"""python -m planish.figures DIRECTORY [NAME ...]: draw all pictures, or some."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from planish import demo, pocket
from planish.compare.quality.measure import Study, measure_recipes
from planish.compare.quality.names import parse_recipes
from planish.figures import absmax, alpha, collect, flow, fold, group, size, smoothing
from planish.opening import keep_programs, prepare_kernels
from planish.pocket.outliers import write_outlier_model
from planish.reference.files.load import open_checkpoint

LAYER, LINEAR, ALPHA = 3, "q", 0.5


def draw_smoothing(path: Path, work: Path) -> None:
    smoothing.draw(panels(work), path)


def draw_absmax(path: Path, work: Path) -> None:
    absmax.draw(panels(work), path)


def draw_size(path: Path, work: Path) -> None:
    rows = measure_recipes(study(work), parse_recipes(demo.OUTLIER_RECIPES))
    size.draw(list(rows), path)


# each draws to a path, from the directory of the model with outlier channels
PICTURES: dict[str, Callable[[Path, Path], None]] = {
    "smoothing": draw_smoothing,
    "absmax": draw_absmax,
    "fold": lambda path, _: fold.draw(path),
    "flow": lambda path, _: flow.draw(path),
    "group": lambda path, _: group.draw(path),
    "size": draw_size,
    "alpha": lambda path, _: alpha.draw(path),
}


def panels(work: Path) -> dict[str, np.ndarray]:
    """Input and weight of one linear of the model with outlier channels."""
    checkpoint = open_checkpoint(work)
    sample = collect.calibration_sample(checkpoint)
    return collect.collect_panels(checkpoint, sample, LAYER, LINEAR, ALPHA)


def study(work: Path) -> Study:
    """The demo's measurement, in a temporary directory."""
    keep_programs(None)
    native = prepare_kernels("auto", None)
    return replace(demo.study_of(open_checkpoint(work), native), directory=work.parent, keep=False)


def main(words: list[str]) -> int:
    if not words or set(words[1:]) - set(PICTURES):
        print(f"{__doc__}\nnames: {', '.join(PICTURES)}", file=sys.stderr)
        return 2
    target = Path(words[0])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory, "pocket-outliers")
        write_outlier_model(pocket.MODEL, work)
        for name in words[1:] or PICTURES:
            PICTURES[name](target / f"{name}.png", work)
            print(target / f"{name}.png", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
