"""Which engine runs a model, and where its compiled programs are kept."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from reference.checkpoint import Checkpoint, open_checkpoint
from reference.errors import OutputError
from reference.tokenizer import Tokenizer, load_tokenizer


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a Hugging Face directory")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """--engine, and the fast engine's own."""
    parser.add_argument("--engine", choices=("fast", "reference"), default="fast")
    add_cache_flag(parser)


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default=None,
        help="where compiled programs are kept (default: the user's cache); 'none' keeps nothing",
    )


def compilation_cache(flag: str | None) -> Path | None:
    """The directory asked for, or one in the user's cache; None where nothing is to be kept.

    Programs found there are trusted, so only the user may write into it. A default that cannot
    be made is done without; a directory that was asked for and cannot be made is an error.
    """
    if flag == "none":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(home, "planish", "xla") if flag is None else Path(flag)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        if flag is None:
            return None
        reason = f"cannot be written: {problem.strerror}"
        raise OutputError(reason, path=path, name="compilation_cache") from None
    return path


def keep_programs(flag: str | None) -> None:
    """Have every engine from here on keep its compiled programs where the flag says."""
    from fast.engine import use_compilation_cache

    path = compilation_cache(flag)
    if path is not None:
        use_compilation_cache(path)


def open_model(path: str) -> tuple[Checkpoint, Tokenizer]:
    """A checkpoint and its tokenizer."""
    checkpoint = open_checkpoint(path)
    return checkpoint, load_tokenizer(path, checkpoint.config)


def open_engine(checkpoint: Checkpoint, args: argparse.Namespace) -> Any:
    """The engine asked for; jax is imported only for the fast one."""
    if args.engine == "reference":
        from reference.engine import Engine as ReferenceEngine

        return ReferenceEngine(checkpoint)
    from fast.engine import Engine

    keep_programs(args.compilation_cache)
    return Engine(checkpoint)
