"""Join the other processes of --parallel: compare what is run, connect, and end as one.

Process 0 writes the results; the others compute and print errors only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import __version__
from planish.reference.errors import LOGGER, PeerEndedError, PlanishError, one_line
from planish.terminal.parallel import parse_parallel, read_address, read_place

if TYPE_CHECKING:  # the command imports this module before it knows its verb
    from planish.reference.files.load import Checkpoint

SAMPLE = 1024  # bytes of each tensor that are compared
PLACES = ("process_id", "given", "run", "compilation_cache", "threads", "out", "config", "model")
FILES = ("text", "prompt_file")  # flags whose files are compared, not their names
LAUNCHED = "PLANISH_LAUNCHED"  # set by planish launch, which says which process ended first
BAD_INPUT = 2
FOLLOWED = 75  # the exit code of a launched process that ends because another one has ended


def check_parallel(args: argparse.Namespace) -> bool:
    """Whether --parallel asks for several processes; refuses what does not fit together."""
    text = getattr(args, "parallel", None)
    if text is None:
        for flag in ("--coordinator", "--num_processes", "--process_id"):
            if flag in args.given:
                raise PlanishError("needs --parallel", name=flag)
        return False
    if getattr(args, "engine", "fast") == "reference":
        raise PlanishError("is for --engine fast, not for --engine reference", name="--parallel")
    return parse_parallel(text).processes > 1


def join_others(
    args: argparse.Namespace, checkpoint: Checkpoint, kernels: Callable[[], bool]
) -> tuple[bool, dict[str, Any]]:
    """Whether the native kernels are used, and the engine's options on this process's devices.

    kernels: loads them. Raises PeerError, on every process, if one is missing or differs.
    """
    from planish.fast.native.library import preferred_set
    from planish.fast.parallel.connecting import connect_mesh, connect_stages
    from planish.fast.parallel.group import Member, end_process, join_group
    from planish.fast.parallel.stages import stage_layers

    wanted, address = parse_parallel(args.parallel), read_address(args)
    count, index = read_place(args)
    if wanted.processes != count:
        expected = f"tensor x pipeline = {count}, as there are {count} processes"
        raise PlanishError("bad value", name="--parallel", expected=expected, found=args.parallel)
    stage_layers(checkpoint.config.num_layers, wanted.pipeline)  # raises if there are too few
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
    leads = args.verb == "serve"  # process 0 decides what is run
    if leads or wanted.pipeline > 1:
        column, options = connect_stages(group, wanted.pipeline, wanted.tensor)
        _columns.append(column)
        options = {"placement": options["placement"]} if leads else options
    else:
        options = connect_mesh(group)
    group.watch()
    return native, options


_joined: list[Any] = []  # the group, once it is joined
_columns: list[Any] = []  # and its streams, if it has any


def column() -> Any:
    """The streams to other processes (fast/parallel/streams.py); None without any."""
    return _columns[0] if _columns else None


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


def follows(args: argparse.Namespace) -> bool:
    """Whether another process decides what this one runs."""
    return check_parallel(args) and read_place(args)[1] > 0


def ignore_signals() -> None:
    """Let process 0 decide when this one ends; if another process dies, this one ends at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _joined[0].at_fault = end_at_once


def end_at_once(problem: str) -> None:
    """End this process, which has nothing to tidy up."""
    os._exit(say_fault(problem))


def code_of_end(code: Any) -> Any:
    """The exit code of this process, another one if another process has ended it."""
    problem = _joined[0].fault if _joined else None
    return code if problem is None else say_fault(problem)


def say_fault(problem: str) -> int:
    """Say what has ended this process, unless planish launch does; the exit code."""
    if LAUNCHED in os.environ:
        return FOLLOWED
    print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)
    return BAD_INPUT


def leave_others() -> None:
    """Part from the other processes, which have been told to end."""
    for streams in _columns:
        streams.finish()
    if _joined and _joined[0].fault is None:
        _joined.pop().leave()


@contextlib.contextmanager
def faults_reported() -> Iterator[None]:
    """What another process's end causes here becomes one PeerEndedError that names it."""
    try:
        yield
    except BaseException as problem:
        if not _joined:
            raise
        collective = isinstance(problem, RuntimeError | ValueError) and "Gloo" in str(problem)
        lost = collective or isinstance(problem, PeerEndedError)
        fault = _joined[0].wait_for_fault(5.0 if lost else 0.0)
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
        for streams in _columns:
            streams.finish()
        _joined[0].leave()
        return
    index = _joined[0].member.process
    _joined[0].fail(f"{_joined[0].describe(index)} ended with an error")
    sys.stderr.flush()
    os._exit(code)
