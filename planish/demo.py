"""python -m planish.demo: everything that planish does, on the embedded model, in five minutes.

    the model with outlier channels, then as it was trained
      -> each recipe -> the table of `planish quality`
    the first recipe that costs less than 1 %, found by `planish quantize --method auto`
    the same prompt in both engines; compare's verdict
    a 4-bit model in the formats of llama.cpp and vLLM, and back; the picture of the outliers

All output goes to the directory `demo` and replaces what is there. Compiled programs, which are
trusted, go to the user's cache, as with the other commands.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from planish import demo_formats, pocket
from planish.auto import make_study
from planish.auto import write as write_found
from planish.compare.conformance import report
from planish.compare.quality.auto import Search
from planish.compare.quality.measure import Quality, Study, measure_recipes
from planish.compare.quality.names import parse_recipes
from planish.compare.quality.order import candidates
from planish.compare.quality.table import HEADER, describe_protocol, legend, table_row
from planish.compare.quality.trail import HEADER as TRAIL_HEADER
from planish.compare.quality.trail import About, report_values
from planish.compare.quality.trail import table_row as trial_row
from planish.fast.quantize.runtime import fast_runtime
from planish.fast.session.engine import Engine
from planish.figures import smoothing
from planish.figures.collect import collect_panels
from planish.opening import keep_programs, prepare_kernels
from planish.pocket.outliers import write_outlier_model
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.observe import cut_samples
from planish.reference.text.evaluate import cut_windows
from planish.reference.text.generate import Stop, text_stream
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import load_tokenizer, read_text
from planish.terminal.progress import progress

DIRECTORY = Path("demo")
PROMPT = "def read_config(path):"
SAMPLES, SAMPLE_LENGTH = 16, 512
NEW_TOKENS = 48
WEIGHTS = "W4A16"  # the recipe of the search
FOR_OTHERS = "W4A16-g32"  # of which GGUF has a type, Q4_0

OPENING = f"""\
planish on its embedded model (5.8 million parameters, trained on Python's own library): about five
minutes. Everything it makes stays in {DIRECTORY}/.

Each row is the model quantized by one recipe. naive is INT8 without smoothing, with the scales of
O2 or of the recipe after the dash; -g32 says how many inputs share an INT4 scale; -alpha0.5 that a
4-bit recipe is smoothed, as the INT8 ones are. The embedding, which is the head too, stays in
float.
"""
OUTLIERS = """The model with outlier channels

The same function, but 24 of 256 channels are 46 to 137 times the median, as in models of billions
of parameters: naive INT8 collapses, SmoothQuant (O1, O2, O3, W8A8) does not, and smoothing cures
4 bits too."""
PLAIN = "The model as it was trained"
OUTLIER_RECIPES = (
    "naive,naive-W8A8,O1,O2,O3,W8A8,W8A16,W4A16-g32,W4A8-g32,W4A16-g128,W4A8-g128,"
    "W4A16-g32-alpha0.5,W4A8-g32-alpha0.5,W4A16-g128-alpha0.5"
)
PLAIN_RECIPES = "naive,W8A8,W4A16-g32,W4A8-g32,W4A8-g32-alpha0.5"


def main() -> int:
    print(OPENING, flush=True)
    DIRECTORY.mkdir(exist_ok=True)
    keep_programs(None)
    native = prepare_kernels("auto", None)
    outliers = DIRECTORY / "pocket-outliers"
    write_outlier_model(pocket.MODEL, outliers)
    models = (OUTLIERS, outliers, OUTLIER_RECIPES), (PLAIN, pocket.MODEL, PLAIN_RECIPES)
    for title, source, recipes in models:
        study = study_of(open_checkpoint(source), native)
        print(f"## {title}\n\n{describe_protocol('heldout.txt', study.windows)}\n\n{HEADER}")
        for row in rows_of(study, recipes):
            print(table_row(row), flush=True)
        print()
    print(legend())
    search(open_checkpoint(outliers), native)
    judge(open_checkpoint(DIRECTORY / "pocket-outliers-quantized" / "W8A8"), native)
    formats(open_checkpoint(DIRECTORY / "pocket-outliers-quantized" / FOR_OTHERS), native)
    return picture(open_checkpoint(outliers))


def study_of(source: Checkpoint, native: bool) -> Study:
    """The whole held-out text in windows of the model's length, as `planish perplexity` has it."""
    windows = cut_windows(held_out_tokens(source), source.config.max_positions)
    model = "pocket" if source.path == pocket.MODEL else source.path.name
    return Study(
        source=source,
        windows=windows,
        samples=calibration_samples(source),
        directory=DIRECTORY / f"{model}-quantized",
        keep=True,
        open_engine=lambda checkpoint: Engine(checkpoint, native),
        runtime=fast_runtime(native),
    )


def rows_of(study: Study, recipes: str) -> Iterator[Quality]:
    """The float model's row and the recipes'."""
    study.directory.mkdir(parents=True, exist_ok=True)
    return measure_recipes(study, parse_recipes(recipes), progress)


def search(source: Checkpoint, native: bool) -> None:
    """Search for the smallest recipe within 1 %, and write its model with the report."""
    target, windows = (
        DIRECTORY / f"{source.path.name}-auto",
        cut_windows(held_out_tokens(source), 512)[:32],
    )
    print(f"\n## The smallest recipe within 1 % of float (--method auto)\n\n{TRAIL_HEADER}")
    with (
        tempfile.TemporaryDirectory(prefix="planish-demo-") as directory,
        CheckpointWriter(target, source.path, overwrite=True) as writer,
    ):
        study = make_study(source, calibration_samples(source), windows, Path(directory), native)
        metric = study.goal.metric
        found = Search(study=study, show=lambda trial: print(trial_row(trial, metric), flush=True))
        outcome = found.run(candidates(WEIGHTS))
        about = About(
            model=str(source.path),
            recipe=WEIGHTS,
            calibration="calibration.txt",
            validation=describe_protocol("heldout.txt", windows),
        )
        values = report_values(outcome, study.goal, about)
        write_found(writer, outcome, values)
    print(f"\n{values['verdict']}\nits report, and the picture of size against loss: {target}/")


def judge(smoothed: Checkpoint, native: bool) -> None:
    """Run both engines on the smoothed W8A8 model: print their text and compare's verdict."""
    write_text(smoothed, native)
    print("\n## Does the fast engine compute what the reference defines? (W8A8, with outliers)\n")
    print(report.run(smoothed, held_out_tokens(smoothed)[:600], native=native).table())


def formats(quantized: Checkpoint, native: bool) -> None:
    """Convert a 4-bit model for other programs and back; its codes and logits stay the same."""
    print(f"\n## {quantized.path.name} for other programs, and back (planish convert)\n")
    print(demo_formats.HEADER)
    tokens = held_out_tokens(quantized)[:128]
    directory = DIRECTORY / "converted"
    for row in demo_formats.convert_there_and_back(quantized, directory, tokens, native):
        print(row, flush=True)


def held_out_tokens(checkpoint: Checkpoint) -> list[int]:
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    return tokenizer.encode(read_text(pocket.HELDOUT))


def calibration_samples(checkpoint: Checkpoint) -> list[np.ndarray]:
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    return cut_samples(tokenizer.encode(read_text(pocket.CALIBRATION)), SAMPLES, SAMPLE_LENGTH)


def write_text(checkpoint: Checkpoint, native: bool) -> None:
    """Continue a prompt with both engines; print one text if they agree, both if not."""
    engines = (ReferenceEngine(checkpoint), Engine(checkpoint, native))
    texts = {engine.name: continue_prompt(checkpoint, engine) for engine in engines}
    names = {text: [n for n, t in texts.items() if t == text] for text in texts.values()}
    print(f"\n## {PROMPT!r}, continued by {checkpoint.path}")
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
    """Draw the picture of smoothing, if matplotlib is installed."""
    layer = checkpoint.config.num_layers // 2
    panels = collect_panels(checkpoint, calibration_samples(checkpoint)[0], layer, "q", 0.5)
    try:
        path = DIRECTORY / "smoothing.png"
        smoothing.draw(panels, path)
        print(f"\npicture of the outliers before and after smoothing: {path}")
    except ImportError:
        print("\nno picture: matplotlib is not installed (pip install planish[plot])")
    return 0


if __name__ == "__main__":
    sys.exit(main())
