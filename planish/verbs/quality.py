"""What each recipe costs a model: perplexity, KL, top-1, bytes and tokens per second.

A recipe is one word: W8A8, W4A16-g32, W4A8-g64-minmax, W8A8-alpha0.8, naive-O1. Each quantized
model is written to the system's temporary directory (TMPDIR) and removed after the measurement.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish import pocket
from planish.calibration import calibration_samples
from planish.compare.quality.names import parse_recipes
from planish.opening import keep_programs, native_kernels, open_model, with_attention
from planish.reference.errors import PromptError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.quantize.checkpoint import check_request
from planish.reference.quantize.observe import NUM_SAMPLES, SAMPLE_LENGTH
from planish.reference.quantize.recipe import needs_calibration
from planish.reference.text.evaluate import cut_windows
from planish.reference.text.tokenizer import Tokenizer, read_text
from planish.terminal.flags import (
    add_attention_flags,
    add_cache_flag,
    add_kernels_flag,
    add_model_flag,
)
from planish.terminal.given import notice_idle
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import print_json
from planish.terminal.progress import progress
from planish.verbs.perplexity import WINDOW_HELP, default_window

RECIPES = "W8A8,W4A16-g32,W4A8-g32,W4A8-g32-alpha0.5"
CALIBRATION_FLAGS = ("--calibration", "--samples", "--sequence_length", "--sample_length")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    words = f"separated by commas (default: {RECIPES})"
    parser.add_argument("--recipes", default=RECIPES, metavar="NAMES", help=words)
    words = "UTF-8 text to measure on (default: the embedded held-out text)"
    parser.add_argument("--text", metavar="FILE", help=words)
    parser.add_argument("--window", type=int, metavar="N", help=WINDOW_HELP)
    sampling = parser.add_argument_group("the calibration")
    words = "UTF-8 text (default: the embedded one)"
    sampling.add_argument("--calibration", metavar="FILE", help=words)
    words = f"how many samples to cut from it (default: {NUM_SAMPLES})"
    sampling.add_argument("--samples", type=int, metavar="N", help=words)
    words = f"tokens of a sample (default: {SAMPLE_LENGTH})"
    sampling.add_argument("--sequence_length", "--sample_length", type=int, metavar="N", help=words)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    engine = parser.add_argument_group("the engine")
    add_attention_flags(engine)
    add_kernels_flag(engine)
    add_cache_flag(engine)


def run(args: argparse.Namespace) -> int:
    recipes = parse_recipes(args.recipes)
    recipes.pop("float", None)  # it always has a row
    checkpoint, tokenizer = open_model(args)
    for chosen in recipes.values():
        check_request(checkpoint, chosen, "tiles")
    windows = text_windows(args, checkpoint, tokenizer)
    calibrated = any(map(needs_calibration, recipes.values()))
    samples = samples_of(args, checkpoint) if calibrated else None
    notice_idle(args, (not calibrated, "as no recipe needs a calibration", CALIBRATION_FLAGS))
    keep_programs(args.compilation_cache)
    with interrupts_kill():
        from planish.compare.quality.measure import Study
        from planish.fast.quantize.runtime import fast_runtime
    native = native_kernels(args)
    with tempfile.TemporaryDirectory(prefix="planish-quality-") as directory:
        study = Study(
            source=checkpoint,
            windows=windows,
            samples=samples,
            directory=Path(directory),
            keep=False,
            open_engine=make_opener(args, checkpoint, native),
            runtime=fast_runtime(native),
        )
        report(args, study, recipes)
    return 0


def text_windows(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> list[list[int]]:
    """Cut the text into windows as `planish perplexity` does."""
    if args.text is None:
        notice("measuring on the embedded held-out text; --text FILE takes your own")
    longest = checkpoint.config.max_positions
    if args.window is not None and args.window > longest:
        expected = f"at most {longest}, the model's length"
        raise PromptError("bad value", name="window", expected=expected, found=args.window)
    tokens = tokenizer.encode(read_text(pocket.HELDOUT if args.text is None else args.text))
    window = default_window(tokens, longest) if args.window is None else args.window
    return cut_windows(tokens, window)


def samples_of(args: argparse.Namespace, checkpoint: Checkpoint) -> list[np.ndarray]:
    """The calibration samples, cut as `planish quantize` does."""
    own, length = "--calibration FILE", args.sequence_length
    return calibration_samples(checkpoint, args.calibration, args.samples, length, own)


def make_opener(args: argparse.Namespace, source: Checkpoint, native: bool) -> Any:
    """A function that opens an engine with the length and the KV cache that the flags ask for."""
    from planish.fast.session.engine import Engine

    def open_engine(checkpoint: Checkpoint) -> Engine:
        checkpoint = with_attention(checkpoint, args)
        longest, learned = source.config.max_positions, source.learned_positions
        config = replace(checkpoint.config, max_positions=longest)
        return Engine(replace(checkpoint, config=config, learned_positions=learned), native)

    return open_engine


def report(args: argparse.Namespace, study: Any, recipes: dict[str, Any]) -> None:
    """Print rows as they are measured, or one JSON object."""
    from planish.compare.quality import measure, table

    text = "the embedded held-out text" if args.text is None else args.text
    rows = measure.measure_recipes(study, recipes, progress)
    if args.json:
        count, window = len(study.windows), len(study.windows[0])
        about = {"text": text, "windows": count, "window": window, "columns": table.COLUMNS}
        return print_json({**about, "rows": [asdict(row) for row in rows]})
    print(f"{table.describe_protocol(text, study.windows)}\n{table.legend()}\n\n{table.HEADER}")
    for row in rows:
        print(table.table_row(row), flush=True)
    return None
