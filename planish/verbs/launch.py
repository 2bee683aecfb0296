"""Run a verb on several processes of this machine, each on its own cores and NUMA node.

    planish launch --processes 2 -- generate --model DIR --prompt TEXT

Linears are cut (--parallel tensor=N) unless the verb's --parallel says otherwise, and the result is
that of one process, bit for bit. The first process prints it. If a process ends, all end, and one
line says which.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence

from planish.joining import LAUNCHED
from planish.reference.errors import PlanishError
from planish.reference.memory import free_memory
from planish.terminal.children import Children
from planish.terminal.parallel import parse_parallel
from planish.terminal.processors import share_processors

PARALLEL_VERBS = ("generate", "perplexity", "logits", "serve", "bench")
MOST_PROCESSES = 256
PROCESS_BYTES = 2**28  # of Python, NumPy, jax and compiled programs


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=int, required=True, metavar="N", help="how many processes"
    )
    parser.add_argument("words", nargs="*", metavar="-- VERB ...", help="a verb and its flags")


def run(args: argparse.Namespace) -> int:
    words = check_words(args.words)
    if not 1 <= args.processes <= MOST_PROCESSES:
        expected = f"1..{MOST_PROCESSES}"
        raise PlanishError("bad value", name="processes", expected=expected, found=args.processes)
    check_memory(args.processes)
    words = add_parallel(words, args.processes)
    children = Children()
    if words[0] == "serve":  # which answers SIGTERM by ending what it streams
        signal.signal(signal.SIGTERM, lambda *_: children.terminate())
    try:
        start_all(children, words, args.processes)
        return children.wait()
    except KeyboardInterrupt:
        children.interrupt()
        raise
    finally:
        children.stop()


def check_words(words: Sequence[str]) -> list[str]:
    """The verb and its flags; raises PlanishError for a verb that runs on one process only."""
    words = list(words[1:] if words[:1] == ["--"] else words)
    known = ", ".join(PARALLEL_VERBS)
    if not words:
        raise PlanishError("is missing", name="launch: verb", expected=f"-- and one of {known}")
    if words[0] not in PARALLEL_VERBS:
        raise PlanishError("bad value", name="launch: verb", expected=known, found=words[0])
    return words


def check_memory(count: int) -> None:
    """Refuse more processes than the system has memory for, before it starts to kill."""
    most = max(free_memory() // PROCESS_BYTES, 1)
    if count > most:
        expected = f"at most {most}, as each takes {PROCESS_BYTES // 2**20} MiB beside the model"
        raise PlanishError("bad value", name="processes", expected=expected, found=count)


def add_parallel(words: list[str], count: int) -> list[str]:
    """The words with --parallel; raises PlanishError if theirs is for another count."""
    names = [word.partition("=")[0] for word in words]
    if "--parallel" not in names:
        return [*words, "--parallel", f"tensor={count}"]
    place = names.index("--parallel")
    given = words[place].partition("=")[2] or "".join(words[place + 1 : place + 2])
    if (found := parse_parallel(given).processes) != count:
        expected = f"--processes {found}, or for {count} processes"
        raise PlanishError("bad value", name="--parallel", expected=expected, found=given)
    return words


def start_all(children: Children, words: Sequence[str], count: int) -> None:
    """Start every process, with what tells it which one it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    command = [sys.executable, "-m", "planish", *words]
    for index, processors in enumerate(share_processors(count)):
        own = {
            LAUNCHED: "1",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        children.start(command, os.environ | own, processors)
