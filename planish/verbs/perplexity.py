"""How well a model predicts a text: perplexity with its standard error; lower is better.

--protocol windows cuts the text into windows, each predicted without the text before it; an
incomplete last window is left out. --protocol rolling is that of lm-evaluation-harness, with which
it measures wikitext: every token is predicted, the first from BOS, and the figures are for each
word and byte, so that models with different tokenizers can be compared. Its FILE.jsonl has a
document on each line, {"text": "..."}; another file is one document.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from planish.opening import open_engine, open_model
from planish.records import read_records
from planish.reference.errors import PromptError, notice
from planish.reference.text.chat_template import special_tokens
from planish.reference.text.evaluate import (
    LONGEST_WINDOW,
    Perplexity,
    Rolling,
    cut_windows,
    perplexity,
    rolling,
    rolling_windows,
)
from planish.reference.text.tokenizer import Tokenizer, read_text
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import engine_rule, notice_idle
from planish.terminal.output import counted, print_json
from planish.terminal.parallel import add_parallel_flags
from planish.terminal.progress import progress

WINDOWS, ROLLING = "windows", "rolling"
PROTOCOL_HELP = "how the text is cut (default: windows; rolling: as lm-evaluation-harness does)"
WINDOW_HELP = "tokens of a window (default: 2048, or the length of the model or the text, if less)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="a text in UTF-8")
    names = (WINDOWS, ROLLING)
    parser.add_argument("--protocol", choices=names, default=WINDOWS, help=PROTOCOL_HELP)
    parser.add_argument("--window", type=int, metavar="N", help=WINDOW_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_engine_flags(parser)
    add_parallel_flags(parser)


def run(args: argparse.Namespace) -> int:
    idle = engine_rule(args)
    checkpoint, tokenizer = open_model(args)
    longest = checkpoint.config.max_positions
    if args.window is not None and args.window > longest:
        expected = f"at most {longest}, the model's length"
        raise PromptError("bad value", name="window", expected=expected, found=args.window)
    prepare, as_text = PROTOCOLS[args.protocol]
    measure = prepare(args, tokenizer)  # raises before the model is loaded
    notice_idle(args, idle)
    result = measure(open_engine(checkpoint, args))
    print_json(asdict(result)) if args.json else print(as_text(result))
    return 0


def prepare_windows(args: argparse.Namespace, tokenizer: Tokenizer) -> Callable[[Any], Perplexity]:
    """Measures an engine on the text in windows that do not see each other."""
    tokens = tokenizer.encode(read_text(args.text))
    longest = tokenizer.config.max_positions
    window = default_window(tokens, longest) if args.window is None else args.window
    cut_windows(tokens, window)
    return lambda engine: perplexity(engine.losses, tokens, window, progress)


def prepare_rolling(args: argparse.Namespace, tokenizer: Tokenizer) -> Callable[[Any], Rolling]:
    """Measures an engine on every token of a text, or of the documents in FILE.jsonl."""
    texts, longest = read_documents(args.text), tokenizer.config.max_positions
    documents = [(text, tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    window = min(LONGEST_WINDOW, longest) if args.window is None else args.window
    rolling_windows(documents[0][1], 0, window)  # raises for a bad window
    prefix = first_token(tokenizer)

    def measure(engine: Any) -> Rolling:
        def score(context: Sequence[int], targets: Sequence[int]) -> np.ndarray:
            losses: np.ndarray = engine.score(context, [targets])[0].losses
            return losses

        return rolling(score, documents, prefix, window, progress)

    return measure


def read_documents(path: str) -> list[str]:
    """The texts of FILE.jsonl, or the whole text of another file."""
    if Path(path).suffix == ".jsonl":
        return read_records(path, "text")
    return [read_text(path)]


def first_token(tokenizer: Tokenizer) -> int:
    """The token that a document's first one is predicted from: BOS, or EOS without one.

    Both as tokenizer_config.json names them, which is where transformers and lm_eval look; where it
    names none, those of config.json.
    """
    roles, config = special_tokens(tokenizer.path), tokenizer.config
    text = roles.get("bos_token", roles.get("eos_token"))
    named = [token for token, added in tokenizer.added_tokens().items() if added == text]
    own = [] if config.bos_token_id is None else [config.bos_token_id]
    ids: list[int] = [*named, *own, *config.eos_token_ids]
    if not ids:
        expected = "a model with BOS or EOS, to predict the first token from"
        raise PromptError("has none", path=tokenizer.path, name="bos_token", expected=expected)
    return ids[0]


def default_window(tokens: Sequence[int], longest: int) -> int:
    """The longest window of the protocol and the model; a shorter text is one window."""
    window = min(LONGEST_WINDOW, longest)
    if not 2 <= len(tokens) < window:
        return window
    notice(f"window: {len(tokens)} tokens instead of {window}, as the text has no more")
    return len(tokens)


def windows_text(result: Perplexity) -> str:
    return (
        f"perplexity {result.perplexity:.5f} ± {result.standard_error:.5f}"
        f" ({result.tokens} tokens, {counted(result.windows, 'window')} of {result.window})"
    )


def rolling_text(result: Rolling) -> str:
    return (
        f"word perplexity {result.word_perplexity:.4f}, byte perplexity"
        f" {result.byte_perplexity:.5f}, bits per byte {result.bits_per_byte:.5f}"
        f" ({counted(result.documents, 'document')}, {result.tokens} tokens,"
        f" {counted(result.windows, 'window')} of {result.window})"
    )


PROTOCOLS: dict[str, Any] = {
    WINDOWS: (prepare_windows, windows_text),
    ROLLING: (prepare_rolling, rolling_text),
}
