"""The flags that several verbs share, each spelled once."""

from __future__ import annotations

import argparse

from planish.opening import ENGINES, KERNELS, KV_CACHES


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """--model, and how much of it is used."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a Hugging Face directory")
    add_links_flag(parser)
    add_max_positions_flag(parser)


def add_links_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow_links",
        action="store_true",
        help="follow links out of the model's directory, as of DVC, git-annex or Nix",
    )


def add_max_positions_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max_positions",
        type=int,
        metavar="N",
        help="the longest sequence, prompt and new tokens together (default: as config.json says)",
    )


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """--engine, and the fast engine's own."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="fast",
        help="fast (default): JAX and native kernels; reference: the definition, in NumPy",
    )
    add_kv_cache_flag(parser)
    add_kernels_flag(parser)
    add_cache_flag(parser)


def add_kv_cache_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv_cache",
        choices=KV_CACHES,
        default="float32",
        help="int8: a quarter of the bytes, one scale per token and head",
    )


def add_kernels_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        choices=KERNELS,
        default="auto",
        help="native: compiled C++ or an error; xla: the portable form; auto: what can be had; or"
        " the instruction set of the C++ that is to be compiled",
    )


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default=None,
        help="where compiled programs are kept (default: the user's cache); 'none' keeps nothing",
    )
