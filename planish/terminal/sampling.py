"""The flags that say how the next token is chosen."""

from __future__ import annotations

import argparse

from planish.reference.errors import SamplingError
from planish.reference.text.sampling import Sampling

DRAWS = ("--top_k", "--top_p", "--min_p", "--seed")
PENALTIES = {
    "repetition_penalty": (1.0, "divides the logits of tokens in the prompt and the text"),
    "presence_penalty": (0.0, "lowers the logits of tokens in the text"),
    "frequency_penalty": (0.0, "lowers them for each time that a token is in the text"),
}
ADJUSTMENTS = (*(f"--{name}" for name in PENALTIES), "--logit_bias")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 (default): take the likeliest token; above 0: sample",
    )
    parser.add_argument(
        "--top_k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K likeliest tokens (default: 0, all)",
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the fewest tokens whose probabilities sum to P (default: 1, all)",
    )
    parser.add_argument(
        "--min_p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample from tokens of P times the likeliest one's probability (default: 0, all)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="seed of the samples; the same seed gives the same text (default: 0)",
    )
    add_adjustments(parser)


def add_adjustments(parser: argparse.ArgumentParser) -> None:
    """What changes the logits first; greedy tokens, too."""
    for name, (default, does) in PENALTIES.items():
        parser.add_argument(
            f"--{name}",
            type=float,
            default=default,
            metavar="R",
            help=f"{does} (default: {default:g}, none)",
        )
    parser.add_argument(
        "--logit_bias",
        action="append",
        default=[],
        metavar="ID:BIAS",
        help="is added to a token's logit, -100..100; may be given several times",
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The flags' values; SamplingError for a bias that is not ID:BIAS."""
    return Sampling(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=tuple(map(parse_bias, args.logit_bias)),
    )


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
