"""From flags to what runs: a checkpoint, its tokenizer, the native kernels, an engine.

open_model     checkpoint and tokenizer
open_engine    the engine that --engine asks for, with its programs and kernels
describe_kernels   what inspect says of this machine
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from planish.fast.native.instruction_sets import BY_NAME, available, candidates
from planish.program_cache import compilation_cache
from planish.reference.errors import KernelsError, OutOfMemoryError, PlanishError, notice
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.text.tokenizer import Tokenizer, load_tokenizer
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.progress import notice_when_slow

ENGINES, KV_CACHES = ("fast", "reference"), ("float32", "int8")
KERNELS = ("auto", "native", "xla", *BY_NAME)
COMPILING = "kernels: compiling them for this processor, which takes 10 to 60 s the first time"
LEAST_ADDRESSES = 2 * 2**30  # bytes; 1.5 GiB did on 2 cores, and each core takes more


def keep_programs(flag: str | None) -> None:
    """Have every engine from here on keep its compiled programs where the flag says."""
    check_address_space()
    with interrupts_kill(), jax_errors():
        from planish.process import claim_jax, use_compilation_cache

    claim_jax()
    path = compilation_cache(flag)
    use_compilation_cache(path and path / "xla")


def check_address_space() -> None:
    """Refuse a limit (ulimit -v) under which XLA's threads abort the process where they begin."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        problem = f"is limited to {limit / 2**30:.2f} GiB of addresses (ulimit -v)"
        expected = f"{LEAST_ADDRESSES / 2**30:.0f} GiB or more, or --engine reference"
        raise OutOfMemoryError(problem, name="memory", expected=expected)


@contextmanager
def jax_errors() -> Iterator[None]:
    """What jax makes of its variables, or of an installation that does not fit, is one line."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as problem:
        raise PlanishError(f"jax cannot be imported: {problem}", name="--engine fast") from problem


def native_kernels(args: argparse.Namespace) -> bool:
    """Whether the native kernels are used, after --kernels; compiled here on first use."""
    return prepare_kernels(args.kernels, args.compilation_cache)


def prepare_kernels(choice: str, flag: str | None) -> bool:
    """The same after the values of --kernels and --compilation_cache."""
    from planish.fast.native.library import choose_kernels

    path = compilation_cache(flag, tell=False)
    with notice_when_slow(COMPILING):
        return choose_kernels(choice, path and path / "kernels")


def describe_kernels(args: argparse.Namespace) -> dict[str, str]:
    """What generate would use on this machine, and why; nothing is compiled.

    Raises KernelsError where --kernels insists on what cannot be had.
    """
    from planish.fast.native.build import plan

    if args.kernels == "xla":
        return {"use": "xla", "why": "--kernels xla"}
    path, sets = compilation_cache(args.compilation_cache, tell=False), candidates(args.kernels)
    try:
        name, compiler, compiled = plan(path and path / "kernels", sets)
    except KernelsError as problem:
        if args.kernels != "auto":
            raise
        return {"use": "xla", "why": str(problem)}
    why = "the best instruction set of this processor"
    if name != available()[0].name:
        why = f"--kernels {name}" if name == args.kernels else "the best one that can be compiled"
    why += f"; {'' if compiled else 'not yet '}compiled by {compiler.version}"
    return {"use": f"native {name}", "why": why}


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
        from planish.reference.engine import Engine as ReferenceEngine

        return ReferenceEngine(checkpoint)
    keep_programs(args.compilation_cache)
    native = native_kernels(args)
    from planish.fast.session.engine import Engine

    if native and checkpoint.layout == "canonical":
        notice("weights: in canonical order, put into tiles while loading (quantize writes tiles)")
    return Engine(checkpoint, native)
