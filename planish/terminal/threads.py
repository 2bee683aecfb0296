"""--threads: how many threads compute, in both engines.

XLA's thread pool, which the native kernels also use, has NPROC threads if the environment sets it,
otherwise one for each processor that the process may use; NumPy's BLAS reads other variables. Both
read them on import or first use, so we set them before any verb is imported. Threads are not bound
to processors: two runs with --threads 2 share a machine of four.

OpenBLAS's threads spin for 2^26 cycles after each product, by default, on cores that XLA's threads
then lack: GPTQ of SmolLM2 beside other jobs took 131 s of CPU so, and 92 s with 2^4.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Sequence

FLAG = "--threads"
VARIABLES = ("NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

IDLE = ("OPENBLAS_THREAD_TIMEOUT", "4")  # the least: a thread without work sleeps at once


def processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fits(text: str) -> bool:
    """int() takes other alphabets' digits, which XLA cannot read, and refuses thousands of them."""
    return re.fullmatch("[0-9]{1,9}", text) is not None and 1 <= int(text) <= processors()


def thread_count(text: str) -> int:
    """Parse the value of --threads; raises ArgumentTypeError if it is out of range."""
    most = processors()
    if not _fits(text):
        expected = f"1..{most}, the processors that this process may use"
        raise argparse.ArgumentTypeError(f"bad value; expected {expected}, found {text[:40]!r}")
    return int(text)


def add_threads_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("the machine").add_argument(
        FLAG,
        type=thread_count,
        metavar="N",
        help=f"how many threads compute (default: one for each of the {processors()} processors)",
    )


def prepare_threads(words: Sequence[str]) -> None:
    """Set the variables that NumPy and XLA read; the parser refuses a bad value later."""
    os.environ.setdefault(*IDLE)
    values = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        values += [value if equals else following] if flag == FLAG else []
    for value in values[-1:]:
        if _fits(value):
            os.environ.update(dict.fromkeys(VARIABLES, value))
