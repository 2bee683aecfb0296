"""The flags of `planish serve`: the address, the model's name, who may call, how much at a time."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from planish.reference.errors import PlanishError
from planish.server.settings import Settings
from planish.terminal.flags import Flags
from planish.terminal.given import check_range
from planish.terminal.sizes import parse_bytes

KEY = "PLANISH_API_KEY"
ORIGIN = (r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+", "an origin, as https://chat.example, or *")
HOST = (r"[^/:?#\s]+", "a name without a port, as chat.example")


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    add_address_flags(parser)
    add_answer_flags(parser.add_argument_group("answers"))
    add_memory_flags(parser.add_argument_group("requests at the same time"))
    add_access_flags(parser.add_argument_group("who may call"))
    more = parser.add_argument_group("watching")
    more.add_argument("--metrics", action="store_true", help="serve /metrics, for Prometheus")
    words = "also log the body of each request, so its prompt (default: one line without it)"
    more.add_argument("--log_requests", action="store_true", help=words)


def add_address_flags(parser: argparse.ArgumentParser) -> None:
    words = "the address to listen at (default: 127.0.0.1, this machine only)"
    parser.add_argument("--host", default="127.0.0.1", help=words)
    words = "the port (default: 8080; 0: one that is free, which is printed)"
    parser.add_argument("--port", type=int, default=8080, metavar="N", help=words)
    words = 'the model\'s id (default: the name of its directory); "default" is accepted as well'
    parser.add_argument("--name", metavar="ID", help=words)
    words = "accept every model name in requests"
    parser.add_argument("--any_model", action="store_true", help=words)


def add_answer_flags(answers: Flags) -> None:
    answers.add_argument(
        "--generation_config",
        choices=("model", "none"),
        default="model",
        help="sampling that requests leave out: as generation_config.json says (default), or"
        " temperature 1 and nothing else",
    )
    answers.add_argument(
        "--max_tokens",
        type=int,
        default=1024,
        metavar="N",
        help="new tokens of a request that does not say how many (default: 1024, or what fits)",
    )
    words = "a chat template in jinja2 instead of the model's"
    answers.add_argument("--chat_template", metavar="FILE", help=words)


def add_memory_flags(memory: Flags) -> None:
    words = "requests that are answered at the same time (default: 8)"
    memory.add_argument("--slots", type=int, default=8, metavar="N", help=words)
    words = "requests that may wait; more are refused with 429 (default: 64)"
    memory.add_argument("--queue", type=int, default=64, metavar="N", help=words)
    words = "tokens guessed from the text and verified in one step, which costs nothing but time"
    memory.add_argument(
        "--lookup", type=int, default=0, metavar="N", help=f"{words} (1..7; default: 0, none)"
    )
    words = "tokens of a request, prompt and answer (default: all of the model's positions)"
    memory.add_argument("--context", type=int, metavar="N", help=words)
    words = "memory for keys and values, as 2G (default: what the slots need, at most a quarter of"
    memory.add_argument("--cache_memory", metavar="BYTES", help=f"{words} what is free)")


def add_access_flags(access: Flags) -> None:
    access.add_argument(
        "--api_key_file",
        metavar="FILE",
        help=f"a file with an API key on each line (default: the key in {KEY}, or none is asked"
        " for)",
    )
    access.add_argument(
        "--allowed_origins",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin whose browser pages may call, as https://chat.example, or *; may be given"
        " several times (default: none)",
    )
    access.add_argument(
        "--allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which the server is called, beside addresses and localhost; may be given"
        " several times",
    )
    words = "the largest body of a request (default: 8M)"
    access.add_argument("--max_body", default="8M", metavar="BYTES", help=words)
    access.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that a client may take to send its request, or to read a part of its answer"
        " (default: 600)",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The flags' values; PlanishError for one out of range or a file that cannot be read."""
    limits = {"port": (0, 65535), "slots": (1, 256), "queue": (0, 10_000)}
    limits |= {"max_tokens": (1, 2**31), "lookup": (0, 7)}
    for name, (least, most) in limits.items():
        check_range(name, getattr(args, name), least, most)
    check_range("timeout", args.timeout, 1, 86_400)
    max_body = parse_bytes(args.max_body, "max_body") or 0
    check_range("max_body", max_body, 1, 2**30)
    return Settings(
        keys=read_keys(args.api_key_file),
        queue=args.queue,
        max_body=max_body,
        allowed_origins=check_names("allowed_origins", args.allowed_origins, ORIGIN),
        allowed_hosts=check_names("allowed_hosts", args.allowed_hosts, HOST),
        timeout=args.timeout,
        metrics=args.metrics,
        log_requests=args.log_requests,
    )


def check_names(name: str, values: Sequence[str], form: tuple[str, str]) -> tuple[str, ...]:
    """The values of a flag, each of a form: a pattern, and what is expected in words."""
    pattern, expected = form
    for value in values:
        if not re.fullmatch(pattern, value, re.IGNORECASE):
            raise PlanishError("bad value", name=name, expected=expected, found=repr(value))
    return tuple(values)


def read_keys(file: str | None) -> tuple[bytes, ...]:
    """The keys of --api_key_file, else that of the environment; as bytes."""
    if file is None:
        if KEY not in os.environ:
            return ()
        if not (key := os.environ[KEY].strip()):  # as from KEY=$UNSET: not what its owner means
            raise PlanishError("is empty", name=KEY, expected="a key, or that it is unset")
        return (os.fsencode(key),)
    lines = Path(file).read_bytes().splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise PlanishError("is empty", path=file, expected="an API key on each line")
    return keys
