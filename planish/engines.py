"""Which engine runs a model, and where its compiled programs are kept."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from reference.checkpoint import Checkpoint, open_checkpoint
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
    """The directory asked for, or one in the user's cache; None where nothing is to be kept."""
    if flag == "none":
        return None
    if flag is not None:
        return Path(flag)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "planish" / "xla"


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

    return Engine(checkpoint, compilation_cache(args.compilation_cache))
