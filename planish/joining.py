"""Join the other processes of --parallel: compare what is run, connect, and end as one.

Process 0 writes the results; the others compute and print errors only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import __version__
from planish.reference.errors import LOGGER, PeerEndedError, PlanishError
from planish.terminal.parallel import parse_parallel, read_address, read_place

if TYPE_CHECKING:  # the command imports this module before it knows its verb
    from planish.reference.files.load import Checkpoint

SAMPLE = 1024  # bytes of each tensor that are compared
PLACES = ("process_id", "given", "run", "compilation_cache", "threads", "out", "config", "model")
FILES = ("text", "prompt_file")  # flags whose files are compared, not their names
LAUNCHED = "PLANISH_LAUNCHED"  # set by planish launch, which says which process ended first
FOLLOWED = 75  # the exit code of a launched process that ends because another one has ended


def check_parallel(args: argparse.Namespace) -> bool:
    """Whether --parallel asks for several processes; refuses what does not fit together."""
    text = getattr(args, "parallel", None)
    if text is None:
        for flag in ("--coordinator", "--num_processes", "--process_id"):
            if flag in args.given:
                raise PlanishError("needs --parallel tensor=T", name=flag)
        return False
    if args.engine == "reference":
        raise PlanishError("is for --engine fast, not for --engine reference", name="--parallel")
    return parse_parallel(text) > 1


def join_others(
    args: argparse.Namespace, checkpoint: Checkpoint, kernels: Callable[[], bool]
) -> tuple[bool, dict[str, Any]]:
    """Whether the native kernels are used, and the engine's options on a mesh of all processes.

    kernels: loads them. Raises PeerError, on every process, if one is missing or differs.
    """
    from planish.fast.native.library import preferred_set
    from planish.fast.parallel.collectives import connect_jax, shared_clock
    from planish.fast.parallel.group import Member, end_process, join_group
    from planish.fast.parallel.mesh import TensorMesh

    parts, address = parse_parallel(args.parallel), read_address(args)
    count, index = read_place(args)
    if parts != count:
        expected = f"tensor={count}, as there are {count} processes"
        raise PlanishError("bad value", name="--parallel", expected=expected, found=args.parallel)
    host, _, port = address.rpartition(":")
    group = join_group(Member(host.strip("[]"), int(port), count, index))
    _joined.append(group)
    if LAUNCHED in os.environ:
        group.at_fault = partial(end_process, code=FOLLOWED, silent=True)
    if index > 0:
        be_quiet()
    native = kernels()
    used = preferred_set() if native else "xla"
    group.agree(describe_run(args, checkpoint) | {"kernels": str(used)})
    connect_jax(group)
    group.watch()
    mesh = TensorMesh(count)
    return native, {"placement": mesh, "clock": shared_clock(mesh)}


_joined: list[Any] = []  # the group, once it is joined


def is_writer() -> bool:
    """Whether this process writes the results."""
    return not _joined or _joined[0].member.process == 0


def be_quiet() -> None:
    """Print no results and no notices: process 0 does."""
    sys.stdout.flush()
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (to the end)
    LOGGER.disabled = True


def describe_run(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, str]:
    """What must be the same on every process: versions, flags and the model."""
    import jax

    facts = {"planish": __version__, "jax": jax.__version__}
    for name, value in sorted(vars(args).items()):
        if name not in (*PLACES, *FILES):
            facts[f"--{name}"] = repr(value)
    for name in FILES:
        paths = getattr(args, name, None) or []
        facts[f"--{name}"] = hash_files([paths] if isinstance(paths, str) else paths)
    facts["model: config"] = hash_text(repr(checkpoint.config))
    facts["model: tensors"] = hash_tensors(checkpoint)
    return facts


def hash_files(paths: list[str]) -> str:
    """SHA-256 of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def hash_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_tensors(checkpoint: Checkpoint) -> str:
    """SHA-256 of every tensor's name, type, shape, size and first bytes."""
    digest = hashlib.sha256()
    for name, entry in sorted(checkpoint.entries.items()):
        digest.update(repr((name, entry.dtype, entry.shape, entry.size)).encode())
        digest.update(entry.data[entry.offset : entry.offset + min(entry.size, SAMPLE)].tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def faults_reported() -> Iterator[None]:
    """What another process's end causes here becomes one PeerEndedError that names it."""
    try:
        yield
    except BaseException as problem:
        if not _joined:
            raise
        collective = isinstance(problem, RuntimeError | ValueError) and "Gloo" in str(problem)
        fault = _joined[0].wait_for_fault(5.0 if collective else 0.0)
        if fault is not None:
            raise PeerEndedError(fault) from None
        if collective:
            raise PeerEndedError("a collective failed, as another process has ended") from None
        raise


def end_together(code: int) -> None:
    """Tell the other processes how this one ends; after an error it ends at once."""
    if not _joined:
        return
    if code == 0:
        _joined[0].leave()
        return
    index = _joined[0].member.process
    _joined[0].fail(f"{_joined[0].describe(index)} ended with an error")
    sys.stderr.flush()
    os._exit(code)
