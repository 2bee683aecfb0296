"""Continue a prompt: stream the new text to stdout, print timings to stderr.

Without a prompt the text starts from the model's bos token. Several prompts are computed as one
batch; their completions are printed at the end, in order, separated by blank lines. --json prints
one object at the end: for each prompt the text, the tokens and the reason why it ended. --chat
writes each prompt into the model's chat template, as the message of a user. --n continues each
prompt several times. --requests answers a file of requests in the form of OpenAI's batches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from planish.answering import answer_all, session_over
from planish.opening import open_engine, open_model
from planish.reference.errors import PlanishError, PromptError, SamplingError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.text.generate import Stop, StopStrings, check_fits, text_stream
from planish.reference.text.requests import MOST_LISTED, Request, TokenScore
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer
from planish.terminal.chat import add_chat_flags, chat_prompts, refuse_chat_flags
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import Rule, engine_rule, notice_idle
from planish.terminal.output import counted, print_json
from planish.terminal.parallel import add_parallel_flags
from planish.terminal.prompts import read_prompts
from planish.terminal.sampling import ADJUSTMENTS, DRAWS, add_sampling_flags, sampling_of
from planish.verbs import requests

NEW_TOKENS = 128  # the default of --max_new_tokens
MOST_SLOTS = 8  # prompts that --logprobs computes together


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    add_prompt_flags(parser)
    add_chat_flags(parser)
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="the most tokens to generate (default: 128, or what fits)",
    )
    add_sampling_flags(parser)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a string that ends the text and is not shown; may be given several times",
    )
    parser.add_argument(
        "--ignore_eos", action="store_true", help="go on after the model's end-of-text token"
    )
    parser.add_argument(
        "--n",
        type=int,
        default=1,
        metavar="N",
        help="how many texts continue each prompt, with draws of their own (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="for --json: log p of each new token under the model's own logits, and of the K"
        f" likeliest (0..{MOST_LISTED})",
    )
    requests.add_request_flags(parser)
    add_engine_flags(parser)
    add_parallel_flags(parser)


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """What is continued."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="the text to continue; may be given several times, for a batch",
    )
    parser.add_argument(
        "--prompt_file",
        action="append",
        default=[],
        metavar="FILE",
        help='a file that is one prompt, or FILE.jsonl with a line {"prompt": "text"} for each;'
        " may be given several times",
    )


@dataclass(kw_only=True)
class Completion:
    """The completion of one prompt, as it grows."""

    prompt: list[int]
    stream: StopStrings
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)  # of each token, if they are wanted
    text: str = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now final."""
        if not self.stream.stopped:
            self.tokens.append(token)
        return self._grow(self.stream.push(token))

    def finish(self) -> str:
        """End the text; returns what was held back as the possible start of a stop string."""
        return self._grow(self.stream.finish())

    def _grow(self, piece: str) -> str:
        self.text += piece
        return piece

    def facts(self, stop: Stop) -> dict[str, Any]:
        """The fields of --json; stop_reason is `stop` (a stop string), `eos` or `length`."""
        reason = "length" if len(self.tokens) == stop.max_new_tokens else "eos"
        return {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": len(self.prompt),
            "new_tokens": len(self.tokens),
            "stop_reason": "stop" if self.stream.stopped else reason,
        }


def run(args: argparse.Namespace) -> int:
    requests.refuse_request_flags(args)
    if args.requests is not None:
        return requests.run(args)
    refuse_chat_flags(args)
    check_counts(args)
    checkpoint, tokenizer = open_model(args)
    prompts = prompt_tokens(args, checkpoint, tokenizer)
    prompts = [prompt for prompt in prompts for _ in range(args.n)]
    stop = stop_of(args, checkpoint.config, prompts)
    sampling = sampling_of(args)
    sampling.check(checkpoint.config.vocab_size)
    check_fits(checkpoint.config, prompts, stop, checkpoint.config.max_positions)
    notice_idle(args, *idle_rules(args, stop, sampling, checkpoint))
    if args.max_new_tokens is None and stop.max_new_tokens < NEW_TOKENS:
        limits = f"as the model's {checkpoint.config.max_positions} positions leave no more"
        notice(f"max_new_tokens: {stop.max_new_tokens} instead of {NEW_TOKENS}, {limits}")
    engine = open_engine(checkpoint, args)
    rows = [Completion(prompt=p, stream=text_stream(tokenizer, p, stop)) for p in prompts]
    start = time.perf_counter()
    tokens = engine.generate(prompts, stop, sampling)
    if args.logprobs is not None:
        tokens = scored_tokens(args, engine, rows, stop, sampling)
    times = write(rows, tokens, not args.json)
    if args.json:
        facts = {"completions": describe(args, tokenizer, rows, stop), "seed": sampling.seed}
        print_json(facts | timing(engine, time.perf_counter() - start))
    else:
        report(engine, prompts, times, "" if args.seed is not None else seed_in_words(sampling))
    return 0


def check_counts(args: argparse.Namespace) -> None:
    """Refuse --n and --logprobs outside their ranges, and --logprobs without --json."""
    if args.n < 1:
        raise SamplingError("bad value", name="n", expected="1 or more", found=args.n)
    if args.logprobs is None:
        return
    if not args.json:
        raise PlanishError("is for --json", name="--logprobs")
    if not 0 <= args.logprobs <= MOST_LISTED:
        expected = f"0..{MOST_LISTED}"
        raise SamplingError("bad value", name="logprobs", expected=expected, found=args.logprobs)


def scored_tokens(
    args: argparse.Namespace,
    engine: Any,
    rows: Sequence[Completion],
    stop: Stop,
    sampling: Sampling,
) -> Iterator[tuple[int, int]]:
    """The same tokens as engine.generate's, from a session, which also scores them."""
    ends = () if stop.ignore_eos else engine.config.eos_token_ids
    requests = [
        Request(
            prompt=tuple(row.prompt),
            max_new_tokens=stop.max_new_tokens,
            sampling=sampling,
            choice=number,
            ends=ends,
            logprobs=args.logprobs,
        )
        for number, row in enumerate(rows)
    ]
    needed = max(len(row.prompt) for row in rows) + stop.max_new_tokens
    context = min(needed, engine.config.max_positions)
    session = session_over(engine, min(len(rows), MOST_SLOTS), context)
    for number, token, score in answer_all(session, requests):
        rows[number].scores.append(score)
        yield number, token


def describe(
    args: argparse.Namespace, tokenizer: Tokenizer, rows: Sequence[Completion], stop: Stop
) -> list[dict[str, Any]]:
    """The completions of --json; with --n each says its prompt and its number."""
    found = []
    for number, row in enumerate(rows):
        prompt, choice = divmod(number, args.n)
        facts = {"prompt": prompt, "choice": choice} if args.n > 1 else {}
        facts |= row.facts(stop)
        if args.logprobs is not None:
            scores = row.scores[: len(row.tokens)]
            facts["logprobs"] = [describe_score(tokenizer, score) for score in scores]
        found.append(facts)
    return found


def describe_score(tokenizer: Tokenizer, score: TokenScore) -> dict[str, Any]:
    """A token's score for JSON, the likeliest tokens with it."""
    pairs = [(score.token, score.logprob), *score.top]
    first, *top = (
        {"token": token, "text": tokenizer.text_of(token), "logprob": logprob}
        for token, logprob in pairs
    )
    return {**first, "top": top}


def seed_in_words(sampling: Sampling) -> str:
    """The seed that was drawn, for --seed; nothing where it has no effect."""
    return f"; seed {sampling.seed}" if sampling.temperature else ""


def write(
    rows: Sequence[Completion], tokens: Iterable[tuple[int, int]], printed: bool
) -> list[float]:
    """Consume the tokens and print: one completion is streamed, several are printed at the end.

    Returns the time of each token.
    """
    streams, times = printed and len(rows) == 1, []
    for row, token in tokens:
        times.append(time.perf_counter())
        piece = rows[row].push(token)
        if streams:
            print(piece, end="", flush=True)
        if all(each.stream.stopped for each in rows):
            break
    rest = [row.finish() for row in rows]
    if printed:
        print(rest[0] if streams else "\n\n".join(row.text for row in rows), flush=True)
    return times


def timing(engine: Any, seconds: float) -> dict[str, Any]:
    """The timings of --json; `seconds` is all after loading, compiling included."""
    return {
        "engine": engine.name,
        "load_seconds": engine.load_seconds,
        "compile_seconds": engine.compile_seconds,
        "seconds": seconds,
    }


def stop_of(args: argparse.Namespace, config: ModelConfig, prompts: Sequence[list[int]]) -> Stop:
    """When generation ends, from the flags."""
    most = args.max_new_tokens
    most = default_new_tokens(config, prompts) if most is None else most
    return Stop(most, tuple(args.stop), args.ignore_eos)


def default_new_tokens(config: ModelConfig, prompts: Sequence[Sequence[int]]) -> int:
    """128, or what the model's positions leave after the longest prompt; check_fits if nothing."""
    room = config.max_positions - max(map(len, prompts)) + 1  # the last new token takes none
    return NEW_TOKENS if room < 1 else min(room, NEW_TOKENS)


def idle_rules(
    args: argparse.Namespace, stop: Stop, sampling: Sampling, checkpoint: Checkpoint
) -> list[Rule]:
    """The rules for flags without effect."""
    nothing = ("--temperature", *DRAWS, *ADJUSTMENTS, "--stop", "--ignore_eos")
    endless = not checkpoint.config.eos_token_ids
    return [
        (stop.max_new_tokens == 0, "without new tokens", nothing),
        (sampling.temperature == 0 < stop.max_new_tokens, "at temperature 0", DRAWS),
        (endless and stop.max_new_tokens > 0, "on a model without eos token", ("--ignore_eos",)),
        engine_rule(args),
    ]


def prompt_tokens(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> list[list[int]]:
    """Every prompt as token ids; without a prompt, the bos token."""
    texts = read_prompts(args.prompt, args.prompt_file)
    if args.chat:
        return chat_prompts(args, tokenizer, texts)
    if texts:
        return [tokenizer.encode(text) for text in texts]
    if checkpoint.config.bos_token_id is None:
        raise PromptError("is missing, and the model has no bos token", name="prompt")
    return [[checkpoint.config.bos_token_id]]


def report(
    engine: Any, prompts: Sequence[Sequence[int]], times: list[float], more: str = ""
) -> None:
    """Print timings on stderr: load, compile, and decoding from each row's second token on."""
    line = f"{engine.name}: load {engine.load_seconds:.2f} s"
    line += f", compile {engine.compile_seconds:.2f} s"
    line += f"; prompt {counted(sum(map(len, prompts)), 'token')}"
    line += f"; {counted(len(times), 'new token')}"
    first = 2 * len(prompts)
    if len(times) > first:
        rate = (len(times) - first) / max(times[-1] - times[first - 1], 1e-9)
        line += f", {rate:.1f} tokens/s"
    print(line + more, file=sys.stderr)
