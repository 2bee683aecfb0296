"""The flags that say how the next token is chosen."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planish.reference.errors import SamplingError
from planish.reference.text.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class SamplingFlag:
    """A flag: its type, metavar and help, and what it is by default."""

    kind: Callable[[str], float]
    metavar: str
    does: str
    default: str  # of Sampling, in words


CHOICE = {
    "temperature": SamplingFlag(
        kind=float,
        metavar="T",
        does="0: take the likeliest token; above 0: sample",
        default="0",
    ),
    "top_k": SamplingFlag(
        kind=int, metavar="K", does="sample from the K likeliest tokens", default="0, all"
    ),
    "top_p": SamplingFlag(
        kind=float,
        metavar="P",
        does="sample from the fewest tokens whose probabilities sum to P",
        default="1, all",
    ),
    "min_p": SamplingFlag(
        kind=float,
        metavar="P",
        does="sample from tokens of P times the likeliest one's probability",
        default="0, all",
    ),
}
PENALTIES = {
    name: SamplingFlag(kind=float, metavar="R", does=does, default=default)
    for name, does, default in (
        (
            "repetition_penalty",
            "divides the logits of tokens in the prompt and the text",
            "1, none",
        ),
        ("presence_penalty", "lowers the logits of tokens in the text", "0, none"),
        ("frequency_penalty", "lowers them for each time that a token is in the text", "0, none"),
    )
}
DRAWS = ("--top_k", "--top_p", "--min_p", "--seed")
ADJUSTMENTS = (*(f"--{name}" for name in PENALTIES), "--logit_bias")


def add_sampling_flags(parser: argparse.ArgumentParser, default: str = "") -> None:
    """How the next token is chosen. default: where other defaults than Sampling's come from."""
    _add_flags(parser, CHOICE, default)
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="seed of the samples; the same seed gives the same text (default: random, and shown)",
    )
    _add_flags(parser, PENALTIES, default)
    parser.add_argument(
        "--logit_bias",
        action="append",
        default=[],
        metavar="ID:BIAS",
        help="is added to a token's logit, -100..100; may be given several times",
    )


def _add_flags(
    parser: argparse.ArgumentParser, flags: dict[str, SamplingFlag], default: str
) -> None:
    for name, flag in flags.items():
        words = f"{default}, or {flag.default}" if default else flag.default
        shown = f"{flag.does} (default: {words})"
        parser.add_argument(f"--{name}", type=flag.kind, metavar=flag.metavar, help=shown)


def sampling_of(args: argparse.Namespace, defaults: Sampling = Sampling()) -> Sampling:  # noqa: B008
    """The flags' values, and the defaults for those that were not given.

    Without --seed it is random where something is sampled. SamplingError for a bias that is not
    ID:BIAS.
    """
    names = (*CHOICE, *PENALTIES, "seed")
    given: dict[str, Any] = {
        name: value for name in names if (value := getattr(args, name)) is not None
    }
    if args.logit_bias:
        given["logit_bias"] = tuple(map(parse_bias, args.logit_bias))
    sampling = replace(defaults, **given)
    return sampling if args.seed is not None else with_random_seed(sampling)


def with_random_seed(sampling: Sampling) -> Sampling:
    """The same with 64 random bits as its seed; greedy tokens need none."""
    return replace(sampling, seed=secrets.randbits(64) if sampling.temperature else 0)


def parse_bias(text: str) -> tuple[int, float]:
    """5:-1.5 -> (5, -1.5)."""
    number, _, bias = text.partition(":")
    try:
        return int(number), float(bias)
    except ValueError:
        expected = "ID:BIAS, as 5:-1.5"
        raise SamplingError(
            "bad value", name="logit_bias", expected=expected, found=repr(text)
        ) from None
