"""Continue a prompt: the new text to stdout as it comes, figures to stderr.

Without a prompt the text begins from the model's bos token alone. Several prompts are computed
as one batch; their completions are printed whole, in order, a blank line between them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from planish.opening import open_engine, open_model
from planish.reference.errors import PromptError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.text.generate import Stop, StopStrings, check_fits, text_stream
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer, read_text
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import Rule, engine_rule, notice_idle

NEW_TOKENS = 128  # where --max_new_tokens is not given


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    several = "may be given several times: a batch"
    parser.add_argument("--prompt", action="append", metavar="TEXT", help=several)
    parser.add_argument(
        "--prompt_file", action="append", metavar="FILE", help=f"a prompt in UTF-8; {several}"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="at most so many (default: 128, or what fits)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)"
    )
    parser.add_argument(
        "--top_k",
        type=int,
        default=0,
        metavar="K",
        help="draw among the K likeliest tokens (default: 0, all)",
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw among the fewest tokens whose probabilities sum to P (default: 1, all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the draws (default: 0)"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a string that ends the text"
    )
    parser.add_argument(
        "--ignore_eos", action="store_true", help="go on after the model's end-of-text token"
    )
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    checkpoint, tokenizer = open_model(args)
    prompts = prompt_tokens(args, checkpoint, tokenizer)
    most = args.max_new_tokens
    most = default_new_tokens(checkpoint.config, prompts) if most is None else most
    stop = Stop(most, tuple(args.stop), args.ignore_eos)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    sampling.check(checkpoint.config.vocab_size)
    check_fits(checkpoint.config, prompts, stop, checkpoint.config.max_positions)
    notice_idle(args, *idle_rules(args, stop, checkpoint))
    if args.max_new_tokens is None and most < NEW_TOKENS:
        limits = f"the model's {checkpoint.config.max_positions} positions"
        notice(f"max_new_tokens: {most} instead of {NEW_TOKENS}, as {limits} leave no more")
    engine = open_engine(checkpoint, args)
    streams = [text_stream(tokenizer, prompt, stop) for prompt in prompts]
    times: list[float] = []
    texts = [""] * len(prompts)
    tokens = engine.generate(prompts, stop, sampling)
    for row, token in tokens:
        times.append(time.perf_counter())
        show(streams, row, streams[row].push(token), texts)
        if all(stream.stopped for stream in streams):
            break
    for row, stream in enumerate(streams):
        show(streams, row, stream.finish(), texts)
    print("\n\n".join(texts) if len(texts) > 1 else "", flush=True)
    report(engine, prompts, times)
    return 0


def default_new_tokens(config: ModelConfig, prompts: Sequence[Sequence[int]]) -> int:
    """128, or as many as the model's positions leave to the longest prompt, if any (check_fits)."""
    room = config.max_positions - max(map(len, prompts)) + 1  # the last new token takes none
    return NEW_TOKENS if room < 1 else min(room, NEW_TOKENS)


def idle_rules(args: argparse.Namespace, stop: Stop, checkpoint: Checkpoint) -> list[Rule]:
    """When which flags change nothing."""
    draws = ("--top_k", "--top_p", "--seed")
    nothing = ("--temperature", *draws, "--stop", "--ignore_eos")
    endless = not checkpoint.config.eos_token_ids
    return [
        (stop.max_new_tokens == 0, "without new tokens", nothing),
        (args.temperature == 0 < stop.max_new_tokens, "at temperature 0", draws),
        (endless and stop.max_new_tokens > 0, "on a model without eos token", ("--ignore_eos",)),
        engine_rule(args),
    ]


def show(streams: Sequence[StopStrings], row: int, piece: str, texts: list[str]) -> None:
    """One prompt streams; several are gathered."""
    if len(streams) == 1:
        print(piece, end="", flush=True)
    else:
        texts[row] += piece


def prompt_tokens(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> list[list[int]]:
    """Every prompt as token ids; none given means the bos token alone."""
    texts = [*(args.prompt or []), *map(read_text, args.prompt_file or [])]
    if any(text == "" for text in texts):
        raise PromptError("is empty", name="prompt", expected="text, or no --prompt at all")
    if texts:
        return [tokenizer.encode(text) for text in texts]
    if checkpoint.config.bos_token_id is None:
        raise PromptError("is missing, and the model has no bos token", name="prompt")
    return [[checkpoint.config.bos_token_id]]


def report(engine: Any, prompts: Sequence[Sequence[int]], times: list[float]) -> None:
    """Speed on stderr: loading and compiling apart from running, which begins with each row's
    second token."""
    compiled = getattr(engine, "compile_seconds", 0.0)
    loaded = getattr(engine, "load_seconds", 0.0)
    line = f"{engine.name}: load {loaded:.2f} s, compile {compiled:.2f} s"
    line += f"; prompt {sum(map(len, prompts))} tokens; {len(times)} new tokens"
    first = 2 * len(prompts)
    if len(times) > first:
        rate = (len(times) - first) / max(times[-1] - times[first - 1], 1e-9)
        line += f", {rate:.1f} tokens/s"
    print(line, file=sys.stderr)
