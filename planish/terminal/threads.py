"""--threads: how many threads compute, in both engines.

XLA's thread pool, which the native kernels also use, has NPROC threads if the environment sets it,
otherwise one for each processor that the process may use; NumPy's BLAS reads other variables. Both
read them on import or first use, so we set them before any verb is imported. Threads are not bound
to processors: two runs with --threads 2 share a machine of four.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence

FLAG = "--threads"
VARIABLES = ("NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(text: str) -> int:
    """Parse the value of --threads; raises ArgumentTypeError if it is out of range."""
    most = processors()
    if not text.isdecimal() or not 1 <= int(text) <= most:
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


def limit_threads(words: Sequence[str]) -> None:
    """Set the variables that NumPy and XLA read; the parser refuses a bad value later."""
    values = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        values += [value if equals else following] if flag == FLAG else []
    for value in values[-1:]:
        if value.isdecimal() and 1 <= int(value) <= processors():
            os.environ.update(dict.fromkeys(VARIABLES, value))
