"""Which engine runs a model, and where its compiled programs are kept."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from reference.checkpoint import Checkpoint, open_checkpoint
from reference.errors import KernelsError, OutputError, PlanishError, notice
from reference.tokenizer import Tokenizer, load_tokenizer


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
    parser.add_argument("--engine", choices=("fast", "reference"), default="fast")
    add_kv_cache_flag(parser)
    add_kernels_flag(parser)
    add_cache_flag(parser)


def add_kv_cache_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv_cache",
        choices=("float32", "int8"),
        default="float32",
        help="int8: a quarter of the bytes, one scale per token and head",
    )


def add_kernels_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        choices=("auto", "native", "xla"),
        default="auto",
        help="native: compiled C++ or an error; xla: the portable form; auto: what can be had",
    )


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
    path = Path(home, "planish") if flag is None else Path(flag)
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
        use_compilation_cache(path / "xla")


def native_kernels(args: argparse.Namespace) -> bool:
    """Whether the native kernels are used, after --kernels; compiled here on first use."""
    from fast.kernels.library import choose_kernels

    path = compilation_cache(args.compilation_cache)
    return choose_kernels(args.kernels, path and path / "kernels")


def kernels_used(args: argparse.Namespace) -> dict[str, str]:
    """What generate would use on this machine, and why; nothing is compiled."""
    from fast.kernels.build import FFI, find_compiler, library_path
    from fast.kernels.instruction_sets import available

    if args.kernels == "xla":
        return {"use": "xla", "why": "--kernels xla"}
    best, path = available()[0].name, compilation_cache(args.compilation_cache)
    try:
        compiler = find_compiler()
    except KernelsError as problem:
        return {"use": "xla", "why": str(problem)}
    why = f"the best instruction set of this processor; by {compiler.version}"
    there = path and all(
        library_path(path / "kernels", compiler, part).exists() for part in (FFI, best)
    )
    return {"use": f"native {best}", "why": f"{why}, {'' if there else 'not yet '}compiled"}


def with_kv_cache(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint with the form of the cache that --kv_cache asks for."""
    return replace(checkpoint, config=replace(checkpoint.config, kv_cache=args.kv_cache))


def with_max_positions(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint with the length that --max_positions asks for; no number changes by it.

    Rotary positions and linear biases go on beyond the length that the model was made for, which
    is told; a table of learned positions ends.
    """
    wanted, config = args.max_positions, checkpoint.config
    if wanted is None:
        return checkpoint
    longest, learned = config.max_positions, config.position_offset is not None
    if wanted < 1 or (learned and wanted > longest):
        expected = f"1..{longest}, the model's learned positions" if learned else "1 or more"
        raise PlanishError("bad value", name="max_positions", expected=expected, found=wanted)
    if wanted > longest:
        notice(f"max_positions: {wanted}, though the model is made for {longest}")
    config = replace(config, max_positions=wanted)
    return replace(checkpoint, config=config, learned_positions=longest if learned else None)


def open_subject(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint of --model, opened as its flags ask."""
    return with_max_positions(open_checkpoint(args.model, args.allow_links), args)


def open_model(args: argparse.Namespace) -> tuple[Checkpoint, Tokenizer]:
    """A checkpoint and its tokenizer."""
    checkpoint = open_subject(args)
    return checkpoint, load_tokenizer(args.model, checkpoint.config)


def open_engine(checkpoint: Checkpoint, args: argparse.Namespace) -> Any:
    """The engine asked for; jax is imported only for the fast one."""
    checkpoint = with_kv_cache(checkpoint, args)
    if args.engine == "reference":
        from reference.engine import Engine as ReferenceEngine

        return ReferenceEngine(checkpoint)
    from fast.engine import Engine

    keep_programs(args.compilation_cache)
    native = native_kernels(args)
    if native and checkpoint.layout == "canonical":
        notice("weights: in canonical order, put into tiles while loading (quantize writes tiles)")
    return Engine(checkpoint, native)
