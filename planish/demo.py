"""python -m planish.demo: the whole story on the embedded model, in under two minutes.

    the plain pocket model and the one with outlier channels
      -> every recipe -> perplexity, KL, top-1, size, speed
    the same text by both engines; compare's verdict; the picture of the outliers

Everything it writes goes into the directory `demo`; what is there already is replaced. Compiled
programs, which are trusted, go to the user's cache as those of the other commands do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import pocket
from compare import quality, report
from fast.engine import Engine
from planish import figure
from planish.engines import keep_programs, prepare_kernels
from planish.progress import progress
from pocket.outliers import write_outlier_model
from reference.calibrate import cut_samples
from reference.checkpoint import Checkpoint, open_checkpoint
from reference.engine import Engine as ReferenceEngine
from reference.evaluate import cut_windows
from reference.generate import Stop, text_stream
from reference.quantize import quantize_checkpoint
from reference.recipes import Recipe, recipe
from reference.sampling import Sampling
from reference.tokenizer import load_tokenizer, read_text
from reference.writer import CheckpointWriter

DIRECTORY = Path("demo")
PROMPT = "def read_config(path):\n    "
WINDOW, WINDOWS = 512, 12
SAMPLES, SAMPLE_LENGTH = 16, 512


def recipes() -> dict[str, Recipe]:
    """The rows of the table."""
    rows = {"float": recipe("float"), "naive": recipe("naive")}
    rows["naive, W8A8"] = recipe("naive", scheme="W8A8")
    rows |= {name: recipe(name) for name in ("O1", "O2", "O3", "W8A8", "W8A16")}
    for group in (32, 128):
        for name in ("W4A16", "W4A8"):
            rows[f"{name} g={group}"] = recipe(name, group_size=group)
    return rows


def main() -> int:
    DIRECTORY.mkdir(exist_ok=True)
    keep_programs(None)
    native = prepare_kernels("auto", None)
    outliers = DIRECTORY / "pocket-outliers"
    write_outlier_model(pocket.MODEL, outliers)
    for title, source in (("plain pocket", pocket.MODEL), ("pocket with outliers", outliers)):
        print(f"\n## {title}\n")
        print(quality.table(rows_of(open_checkpoint(source), native)), flush=True)
    smoothed = open_checkpoint(DIRECTORY / "pocket-outliers-W8A8")
    write_text(smoothed, native)
    print("\n## compare, W8A8 on the pocket model with outliers\n")
    print(report.run(smoothed, held_out_tokens(smoothed)[:600], native=native).table())
    return picture(open_checkpoint(outliers))


def held_out_tokens(checkpoint: Checkpoint) -> list[int]:
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    return tokenizer.encode(read_text(pocket.HELDOUT))


def calibration_samples(checkpoint: Checkpoint) -> list[np.ndarray]:
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    return cut_samples(tokenizer.encode(read_text(pocket.CALIBRATION)), SAMPLES, SAMPLE_LENGTH)


def rows_of(source: Checkpoint, native: bool) -> list[quality.Quality]:
    """Quantize by every recipe and measure each, beside the float model."""
    windows = cut_windows(held_out_tokens(source), WINDOW)[:WINDOWS]
    samples = calibration_samples(source)
    exact = Engine(source, native)
    expected = [exact.forward(window) for window in windows]
    rows: list[quality.Quality] = []
    for name, chosen in progress(recipes().items(), source.path.name):
        target = directory_of(source, name)
        with CheckpointWriter(target, source.path, overwrite=True) as writer:
            quantize_checkpoint(source, writer, chosen, samples)
        engine = Engine(open_checkpoint(target), native)
        baseline = rows[0].perplexity if rows else None
        rows.append(quality.measure(name, engine, windows, expected, target, baseline))
    return rows


def directory_of(source: Checkpoint, name: str) -> Path:
    """Where a recipe's model goes: demo/pocket-W4A8-g32."""
    model = "pocket" if source.path == pocket.MODEL else source.path.name
    return DIRECTORY / f"{model}-{name.replace(', ', '-').replace(' g=', '-g')}"


def write_text(checkpoint: Checkpoint, native: bool) -> None:
    """The same prompt continued by both engines."""
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    prompt, stop, texts = tokenizer.encode(PROMPT), Stop(48), []
    for engine in (ReferenceEngine(checkpoint), Engine(checkpoint, native)):
        stream = text_stream(tokenizer, prompt, stop)
        pieces = [stream.push(token) for _, token in engine.generate([prompt], stop, Sampling())]
        texts.append("".join(pieces) + stream.finish())
        print(f"\n## {engine.name} engine, {checkpoint.path.name}\n\n{PROMPT}{texts[-1]}")
    print(f"\nthe same text: {'yes' if texts[0] == texts[1] else 'NO'}")


def picture(checkpoint: Checkpoint) -> int:
    """Activations and weights before and after smoothing: a PNG, where matplotlib is installed."""
    layer = checkpoint.config.num_layers // 2
    sample = calibration_samples(checkpoint)[0]
    panels = figure.collect(checkpoint, sample, layer, "q", 0.5)
    try:
        path = DIRECTORY / "smoothing.png"
        figure.draw(panels, f"input and weight of q in layer {layer}, alpha = 0.5", path)
        print(f"\npicture: {path}")
    except ImportError:
        print("\nno picture: matplotlib is not installed (pip install planish[plot])")
    return 0


if __name__ == "__main__":
    sys.exit(main())
