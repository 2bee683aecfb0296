"""The flags that several verbs share, each defined once."""

from __future__ import annotations

import argparse

from planish.opening import ENGINES, KERNELS
from planish.reference.model.config import ATTENTIONS, KV_CACHES

Flags = argparse.ArgumentParser | argparse._ArgumentGroup  # what flags can be added to


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """--model, --config, --allow_links and --max_positions."""
    words = "a Hugging Face directory, or a GGUF file"
    parser.add_argument("--model", required=True, metavar="DIR", help=words)
    more = parser.add_argument_group("the model")
    add_links_flag(more)
    add_max_positions_flag(more)


def add_links_flag(parser: Flags) -> None:
    """--allow_links, and --config for GGUF files."""
    parser.add_argument(
        "--config",
        metavar="DIR",
        help="GGUF: a directory whose config.json and tokenizer.json replace the file's keys",
    )
    parser.add_argument(
        "--allow_links",
        action="store_true",
        help="follow links out of the model's directory, such as those of DVC, git-annex or Nix",
    )


def add_max_positions_flag(parser: Flags) -> None:
    parser.add_argument(
        "--max_positions",
        type=int,
        metavar="N",
        help="the longest sequence, prompt plus new tokens (default: as in config.json)",
    )


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """--engine, and the flags of the fast engine."""
    engine = parser.add_argument_group("the engine")
    engine.add_argument(
        "--engine",
        choices=ENGINES,
        default="fast",
        help="fast (default): JAX and native kernels; reference: NumPy, which defines the numbers",
    )
    add_attention_flags(engine)
    add_kernels_flag(engine)
    add_cache_flag(engine)


def add_attention_flags(parser: Flags, own: str = "as the model says") -> None:
    """--attention and --kv_cache, which are `own` by default."""
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help=f"float; int8: both products on INT8 codes, over an INT8 cache (default: {own})",
    )
    parser.add_argument(
        "--kv_cache",
        choices=KV_CACHES,
        help="float32; int8: a quarter of the bytes, one scale per token and head; int8_static:"
        f" calibrated scales (default: {own}, or what --attention needs)",
    )


def add_kernels_flag(parser: Flags) -> None:
    parser.add_argument(
        "--kernels",
        choices=KERNELS,
        default="auto",
        help="auto (default): native if available, otherwise xla; native: C++, compiled on first"
        " use; xla: portable; or the name of an instruction set",
    )


def add_cache_flag(parser: Flags) -> None:
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default=None,
        help="where compiled programs are stored (default: the user's cache); none: nowhere",
    )
