"""How well a model predicts a text: perplexity with its standard error; lower is better.

The text is cut into windows, each predicted without the text before it; an incomplete last window
is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from planish.opening import open_engine, open_model
from planish.reference.errors import PromptError, notice
from planish.reference.text.evaluate import LONGEST_WINDOW, cut_windows, perplexity
from planish.reference.text.tokenizer import read_text
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import engine_rule, notice_idle
from planish.terminal.output import counted, print_json
from planish.terminal.parallel import add_parallel_flags
from planish.terminal.progress import progress

WINDOW_HELP = "tokens of a window (default: 2048, or the length of the model or the text, if less)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="a text in UTF-8")
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
    tokens = tokenizer.encode(read_text(args.text))
    window = default_window(tokens, longest) if args.window is None else args.window
    cut_windows(tokens, window)  # raises before the model is loaded
    notice_idle(args, idle)
    result = perplexity(open_engine(checkpoint, args).losses, tokens, window, progress)
    if args.json:
        print_json(asdict(result))
    else:
        print(
            f"perplexity {result.perplexity:.5f} ± {result.standard_error:.5f}"
            f" ({result.tokens} tokens, {counted(result.windows, 'window')} of {result.window})"
        )
    return 0


def default_window(tokens: Sequence[int], longest: int) -> int:
    """The longest window of the protocol and the model; a shorter text is one window."""
    window = min(LONGEST_WINDOW, longest)
    if not 2 <= len(tokens) < window:
        return window
    notice(f"window: {len(tokens)} tokens instead of {window}, as the text has no more")
    return len(tokens)
