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

from planish import figure, pocket
from planish.compare.conformance import report
from planish.compare.quality import recipes as quality
from planish.fast.session.engine import Engine
from planish.opening import keep_programs, prepare_kernels
from planish.pocket.outliers import write_outlier_model
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.observe import cut_samples
from planish.reference.quantize.recipe import Recipe, recipe
from planish.reference.text.engine import Engine as ReferenceEngine
from planish.reference.text.evaluate import cut_windows
from planish.reference.text.generate import Stop, text_stream
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import load_tokenizer, read_text
from planish.terminal.progress import progress

DIRECTORY = Path("demo")
PROMPT = "def read_config(path):"
WINDOW, WINDOWS = 512, 12
SAMPLES, SAMPLE_LENGTH = 16, 512
NEW_TOKENS = 48

OPENING = f"""\
planish on its embedded model (5.8 million parameters, trained on Python's own library): about two
minutes. Everything it makes stays in {DIRECTORY}/.

Each row below is the model quantized by one recipe and measured on {WINDOWS * WINDOW:,} tokens of
held-out text:
  perplexity  ± its standard error; lower is better
  delta       perplexity less the float model's, on the same tokens
  KL          how far the distribution of the next token moved from the float model's, in nats
  top-1       how often both models find the same token most likely
  size        of the weights' files; the embedding, which is the head too, stays in float
  decode      new tokens per second, for orientation only: a model this small measures overhead
naive is INT8 without smoothing, with one scale for a tensor of activations (as in O2) or one for
each token ("naive, W8A8"). g inputs share an INT4 scale. W8A16, W4A16 and W4A8 are smoothed only
where it is said (--alpha 0.5)."""
PLAIN = "The model as it was trained"
OUTLIERS = """The same function with outlier channels

24 of 256 channels are 46 to 137 times the median, as in models of billions of parameters: naive
INT8 collapses, SmoothQuant (O1, O2, O3, W8A8) does not, and smoothing mends 4 bits too."""


def recipes() -> dict[str, Recipe]:
    """The rows of the table."""
    rows = {"float": recipe("float"), "naive": recipe("naive")}
    rows["naive, W8A8"] = recipe("naive", scheme="W8A8")
    rows |= {name: recipe(name) for name in ("O1", "O2", "O3", "W8A8", "W8A16")}
    for group in (32, 128):
        for name in ("W4A16", "W4A8"):
            rows[f"{name} g={group}"] = recipe(name, group_size=group)
    for name in ("W4A16", "W4A8"):
        rows[f"{name} g=32, smoothed"] = recipe(name, group_size=32, alpha=0.5)
    return rows


def main() -> int:
    print(OPENING, flush=True)
    DIRECTORY.mkdir(exist_ok=True)
    keep_programs(None)
    native = prepare_kernels("auto", None)
    outliers = DIRECTORY / "pocket-outliers"
    write_outlier_model(pocket.MODEL, outliers)
    for title, source in ((PLAIN, pocket.MODEL), (OUTLIERS, outliers)):
        print(f"\n## {title}\n")
        print(quality.table(rows_of(open_checkpoint(source), native)), flush=True)
    smoothed = open_checkpoint(DIRECTORY / "pocket-outliers-W8A8")
    write_text(smoothed, native)
    print("\n## Does the fast engine compute what the reference defines? (W8A8, with outliers)\n")
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
    """The same prompt continued by both engines; two texts are printed only where they differ."""
    engines = (ReferenceEngine(checkpoint), Engine(checkpoint, native))
    texts = {engine.name: continue_prompt(checkpoint, engine) for engine in engines}
    names = {text: [n for n, t in texts.items() if t == text] for text in texts.values()}
    print(f"\n## {PROMPT!r}, continued by {checkpoint.path.name}")
    for text, writers in names.items():
        print(f"\n{PROMPT}{text}\n\nwritten by: {', '.join(writers)}")
    print(f"\nthe same text: {'yes' if len(names) == 1 else 'NO'}")


def continue_prompt(checkpoint: Checkpoint, engine: Engine | ReferenceEngine) -> str:
    """Greedy text."""
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    prompt, stop = tokenizer.encode(PROMPT), Stop(NEW_TOKENS)
    stream = text_stream(tokenizer, prompt, stop)
    pieces = [stream.push(token) for _, token in engine.generate([prompt], stop, Sampling())]
    return "".join(pieces) + stream.finish()


def picture(checkpoint: Checkpoint) -> int:
    """Activations and weights before and after smoothing: a PNG, where matplotlib is installed."""
    layer = checkpoint.config.num_layers // 2
    sample = calibration_samples(checkpoint)[0]
    panels = figure.collect(checkpoint, sample, layer, "q", 0.5)
    try:
        path = DIRECTORY / "smoothing.png"
        figure.draw(panels, f"input and weight of q in layer {layer}, alpha = 0.5", path)
        print(f"\npicture of the outliers before and after smoothing: {path}")
    except ImportError:
        print("\nno picture: matplotlib is not installed (pip install planish[plot])")
    return 0


if __name__ == "__main__":
    sys.exit(main())
