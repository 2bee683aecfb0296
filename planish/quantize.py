"""A float model in, a quantized one out, whole or not at all."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from planish.engines import add_model_flag
from planish.progress import progress
from reference.calibrate import NUM_SAMPLES, SAMPLE_LENGTH, cut_samples
from reference.checkpoint import Checkpoint, open_checkpoint
from reference.errors import RecipeError, notice
from reference.quantize import quantize_checkpoint
from reference.recipes import Recipe, needs_calibration, recipe
from reference.tokenizer import load_tokenizer, read_text
from reference.writer import CheckpointWriter


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--recipe",
        required=True,
        help="float, W8A8, O1, O2, O3, naive, W8A16, W4A16 or W4A8",
    )
    parser.add_argument("--scheme", help="of the recipe naive: O2 (default), O1, O3 or W8A8")
    parser.add_argument("--method", help="how INT4 codes are chosen: rtn")
    parser.add_argument("--group_size", type=int, help="inputs that share an INT4 scale; -1 a row")
    parser.add_argument("--rule", help="INT4: signed (default), absmax, absmax7 or minmax")
    parser.add_argument("--scale_dtype", help="of INT4 scales: float16 (default) or float32")
    parser.add_argument("--activation", help="of W4A8: per_group (default) or per_token")
    parser.add_argument("--alpha", help="smoothing: 0..1, search or search_per_block")
    parser.add_argument(
        "--smooth_outputs", action="store_true", default=None, help="fold v -> o, up -> down too"
    )
    parser.add_argument("--lm_head", help="float (default), int8 or int4")
    parser.add_argument(
        "--ignore",
        action="append",
        metavar="PATTERN",
        help="linears left in float: down_proj, layers.0, *.experts.*, re:REGEX, ...",
    )
    parser.add_argument(
        "--layout", default="tiles", help="of codes: tiles (default), as kernels read, or canonical"
    )
    parser.add_argument("--calibration", metavar="FILE", help="UTF-8 text (default: the pocket's)")
    parser.add_argument("--samples", type=int, default=NUM_SAMPLES)
    parser.add_argument("--sample_length", type=int, default=SAMPLE_LENGTH)
    parser.add_argument("--overwrite", action="store_true")


def run(args: argparse.Namespace) -> int:
    chosen = recipe_of(args)
    checkpoint = open_checkpoint(args.model)
    writer = CheckpointWriter(args.out, args.model, args.overwrite)
    samples = samples_of(args, checkpoint) if needs_calibration(chosen) else None
    start = time.perf_counter()
    with writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples, progress, args.layout)
    seconds = time.perf_counter() - start
    print(f"{args.out}: {chosen.name}, {seconds:.1f} s", file=sys.stderr)
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe with the changes that the flags ask for."""
    if args.activation is not None and args.activation not in ("per_group", "per_token"):
        expected = "per_group or per_token"
        raise RecipeError("unknown", name="activation", expected=expected, found=args.activation)
    if args.activation is not None and args.recipe != "W4A8":
        raise RecipeError("goes with the recipe W4A8 only", name="activation", found=args.recipe)
    return recipe(
        args.recipe,
        scheme=args.scheme,
        method=args.method,
        group_size=args.group_size,
        rule=args.rule,
        scale_dtype=args.scale_dtype,
        activation=args.activation,
        alpha=alpha_of(args.alpha),
        smooth_outputs=args.smooth_outputs,
        head=args.lm_head,
        ignore=None if args.ignore is None else tuple(args.ignore),
    )


def alpha_of(text: str | None) -> float | str | None:
    """A number where it is one; recipe() judges the rest."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def samples_of(args: argparse.Namespace, checkpoint: Checkpoint) -> list[np.ndarray]:
    """Calibration tokens: from the text given, or from the pocket's with a word about it."""
    path = args.calibration
    if path is None:
        import pocket

        path = pocket.CALIBRATION
        notice("calibrating on the embedded text; --calibration FILE takes your own")
    tokens = load_tokenizer(args.model, checkpoint.config).encode(read_text(Path(path)))
    length = min(args.sample_length, checkpoint.config.max_positions)
    return cut_samples(tokens, args.samples, length)
