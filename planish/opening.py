"""From flags to a checkpoint, its tokenizer, the native kernels and an engine.

open_model          checkpoint and tokenizer
open_engine         the engine of --engine, with its compiled programs and kernels
describe_kernels    the kernels that this machine would use
describe_programs   the compiled programs that are kept
"""

from __future__ import annotations

import argparse
import re
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from planish.fast.native.instruction_sets import BY_NAME, available, candidates, explain_tiles
from planish.joining import check_parallel, join_others
from planish.program_cache import compilation_cache
from planish.reference.errors import (
    KernelsError,
    OutOfMemoryError,
    PlanishError,
    RecipeError,
    notice,
)
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.model.config import choose_kv_cache
from planish.reference.text.chat import unite_ends
from planish.reference.text.tokenizer import Tokenizer, load_tokenizer
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.progress import notice_when_slow

ENGINES = ("fast", "reference")
KERNELS = ("auto", "native", "xla", *BY_NAME)
COMPILING = "kernels: compiling for this processor, which takes 10 to 60 s the first time"
ENGINE_PROGRAMS = ("prefill", "decode_tokens", "decode_step", "forward", "losses")
LEAST_ADDRESSES = 2 * 2**30  # bytes; 1.5 GiB were enough on 2 cores, and each core needs more


def keep_programs(flag: str | None) -> None:
    """Make jax ready for the command, and store compiled programs where the flag says."""
    check_address_space()
    with interrupts_kill(), jax_errors():
        from planish.process import claim_jax, use_compilation_cache

    claim_jax()
    path = compilation_cache(flag)
    use_compilation_cache(path and path / "xla")


def prepare_calibration(flag: str | None) -> None:
    """As keep_programs, for what runs a calibration: memory that is freed is kept, too."""
    keep_programs(flag)
    from planish.process import keep_freed_memory

    keep_freed_memory()


def check_address_space() -> None:
    """Refuse an address-space limit (ulimit -v) under which XLA's threads abort the process."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        problem = f"is limited to {limit / 2**30:.2f} GiB of addresses (ulimit -v)"
        expected = f"{LEAST_ADDRESSES / 2**30:.0f} GiB or more, or --engine reference"
        raise OutOfMemoryError(problem, name="memory", expected=expected)


@contextmanager
def jax_errors() -> Iterator[None]:
    """Report in one line that jax rejects its environment variables or its installation."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as problem:
        raise PlanishError(f"jax cannot be imported: {problem}", name="--engine fast") from problem


def native_kernels(args: argparse.Namespace) -> bool:
    """Whether --kernels selects the native kernels; compiles them on first use."""
    return prepare_kernels(args.kernels, args.compilation_cache)


def prepare_kernels(choice: str, flag: str | None) -> bool:
    """The same from the values of --kernels and --compilation_cache."""
    from planish.fast.native.library import choose_kernels

    path = compilation_cache(flag, tell=False)
    with notice_when_slow(COMPILING):
        return choose_kernels(choice, path and path / "kernels")


def describe_kernels(args: argparse.Namespace) -> dict[str, str]:
    """The kernels that generate would use on this machine, and why; compiles nothing.

    Raises KernelsError if --kernels names kernels that are not available.
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
    refusal = explain_tiles()
    why += f"; amx: {refusal}" if refusal else ""
    return {"use": f"native {name}", "why": why}


def describe_programs(args: argparse.Namespace) -> dict[str, Any]:
    """Where XLA's programs are kept, how many of each name, and their bytes; reads no program.

    They are of all models: XLA names a file after a hash of the program, which only compiling
    computes.
    """
    path, kept, size = compilation_cache(args.compilation_cache, tell=False), Counter[str](), 0
    for file in sorted((path / "xla").glob("jit_*-cache")) if path else ():
        name = re.sub(r"^jit_|-[0-9a-f]*-cache$", "", file.name)
        if name in ENGINE_PROGRAMS:
            kept[name] += 1
            size += file.stat().st_size
    return {"directory": path and str(path / "xla"), "kept": dict(kept), "bytes": size}


def with_attention(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint with the attention and the KV cache of --attention and --kv_cache."""
    return choose_attention(checkpoint, args.attention, args.kv_cache)


def choose_attention(
    checkpoint: Checkpoint, attention: str | None, kv_cache: str | None
) -> Checkpoint:
    """The same from the flags' values; None: as the directory says or, once attention is given,
    the cache that it implies. RecipeError for a cache that contradicts it or has no scales."""
    config, stored = checkpoint.config, checkpoint.has_attention_scales
    attention = config.attention if attention is None else attention
    if kv_cache is None and attention == config.attention:
        return checkpoint
    cache = choose_kv_cache(attention, kv_cache, stored)
    if cache == "int8_static" and not stored:
        problem, expected = "has no calibrated scales", "quantize --kv_cache int8_static"
        where: dict[str, Any] = {"path": checkpoint.path, "name": "kv_cache"}
        raise RecipeError(problem, **where, expected=expected, found=cache)
    return replace(checkpoint, config=replace(config, attention=attention, kv_cache=cache))


def with_max_positions(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint with the length of --max_positions; no result changes.

    RoPE and ALiBi continue beyond the length that the model was trained for, with a notice; a table
    of learned positions ends.
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
    """Open the checkpoint of --model, with --config, --allow_links and --max_positions."""
    return with_max_positions(open_given(args), args)


def open_given(args: argparse.Namespace) -> Checkpoint:
    """Open the checkpoint of --model, with --config and --allow_links."""
    return open_checkpoint(args.model, args.allow_links, args.config)


def open_model(args: argparse.Namespace) -> tuple[Checkpoint, Tokenizer]:
    """Open the checkpoint of --model and its tokenizer, whose eos_token ends texts as well."""
    checkpoint = open_subject(args)
    tokenizer = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config)
    config = unite_ends(checkpoint.config, tokenizer, checkpoint.tokenizer_path)
    return replace(checkpoint, config=config), tokenizer


def engine_options(checkpoint: Checkpoint, args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    """Whether the native kernels are used, and the fast engine's options; joins other processes."""
    if check_parallel(args):
        return join_others(args, checkpoint, partial(native_kernels, args))
    return native_kernels(args), {}


def open_engine(checkpoint: Checkpoint, args: argparse.Namespace) -> Any:
    """The engine of --engine; imports jax only for the fast one."""
    checkpoint = with_attention(checkpoint, args)
    check_parallel(args)
    if args.engine == "reference":
        from planish.reference.engine import Engine as ReferenceEngine

        return ReferenceEngine(checkpoint)
    keep_programs(args.compilation_cache)
    native, options = engine_options(checkpoint, args)
    from planish.fast.session.engine import Engine

    if native and checkpoint.origin is None and checkpoint.layout == "canonical":
        notice("weights: in canonical layout, tiled while loading (quantize writes tiles)")
    return Engine(checkpoint, native, **options)
