"""The calibration of `quantize`: its text, its samples, and an estimate of its time.

The command and planish.quantize have the same rules; only the names of the options differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planish import pocket
from planish.records import read_records
from planish.reference.errors import PromptError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.quantize.estimate import Estimate, estimate
from planish.reference.quantize.observe import NUM_SAMPLES, SAMPLE_LENGTH, cut_samples
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runtime import Runtime
from planish.reference.text.tokenizer import load_tokenizer, read_text
from planish.terminal.blocks import LONG
from planish.terminal.progress import duration


def calibration_samples(
    checkpoint: Checkpoint,
    text: str | Path | None = None,
    count: int | None = None,
    length: int | None = None,
    own: str = "calibration=FILE",
    seed: int | None = None,
) -> list[np.ndarray]:
    """Token ids of the samples that a model is calibrated on.

    text: a UTF-8 file, or FILE.jsonl, whose `text` fields are joined by blank lines; None means the
    embedded text, with a notice that names the option `own`.
    seed: draws the samples from the whole text (cut_samples); None takes those at its beginning.
    count, length: by default 512 samples of 512 tokens, shorter if the model or the text is.
    A notice reports a length that exceeds the model's positions and is reduced to them, or a text
    too short for `count` samples. Raises PromptError if there is no sample at all.
    """
    if text is None:
        notice(f"calibrating on the embedded text; {own} takes your own")
    encode = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config).encode
    tokens = encode(read_calibration(pocket.CALIBRATION if text is None else text))
    longest = checkpoint.config.max_positions
    if length is None:
        length = min(SAMPLE_LENGTH, longest, max(1, len(tokens)))
    elif length > longest:
        notice(f"sequence_length: {longest}, as the model has no more positions")
        length = longest
    return cut_samples(tokens, NUM_SAMPLES if count is None else count, length, seed)


def read_calibration(path: str | Path) -> str:
    """The text of a file, or that of all lines of FILE.jsonl, {"text": "..."}, in order.

    Raises PromptError if there is none.
    """
    lines = Path(path).suffix.lower() == ".jsonl"
    text = "\n\n".join(read_records(path, "text")) if lines else read_text(path)
    if not text:
        raise PromptError("contains no text", path=path, expected="text to calibrate on")
    return text


def announce_estimate(
    checkpoint: Checkpoint, recipe: Recipe, samples: Sequence[np.ndarray] | None, runtime: Runtime
) -> None:
    """Announce a long quantization: its time and memory, and how to shorten it."""
    found = estimate(checkpoint, recipe, samples, runtime)
    if found.seconds >= LONG:
        notice(describe_estimate(found, checkpoint, recipe, samples))


def describe_estimate(
    found: Estimate, checkpoint: Checkpoint, recipe: Recipe, samples: Sequence[np.ndarray] | None
) -> str:
    """The text of announce_estimate."""
    size, time = f"{found.bytes / 1e9:.1f} GB", duration(found.seconds)
    if not samples:
        return f"quantizing {checkpoint.config.num_layers} blocks: about {time}, {size} of memory"
    own = "" if set(recipe.methods) == {"rtn"} else f" and the time of {recipe.method}"
    what = f"calibrating on {len(samples)} x {len(samples[0])} tokens"
    shorter = "fewer samples make it shorter, and half as many take half the time"
    if isinstance(recipe.alpha, str):
        what += f" and searching for alpha ({recipe.alpha})"
        shorter = "a number for alpha or fewer samples make it shorter"
    return f"{what}: about {time}{own}, {size} of memory; {shorter}"
