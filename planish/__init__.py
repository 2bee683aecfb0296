"""SmoothQuant W8A8 and INT4 language models on CPUs: defined, run fast, verified.

From Python (api):

    planish.load, planish.quantize, planish.convert, planish.PlanishError, planish.__version__
    planish.check_linear (checks your own kernel, compare/conformance/vectors/)

The rooms: reference/ defines, fast/ runs, compare/ judges, pocket/ is the embedded model. This room
is the command `planish`, the only one that reads flags:

    command          from a command line to a verb; errors in one line, and exit codes
    verbs/           one file for each verb
    dialogue/        planish chat: a conversation, and the terminal that it is typed in
    openai/          the OpenAI protocol without HTTP: bodies, answers, files of requests
    server/          planish serve: a thread that steps a session, and the HTTP around it
    terminal/        flags, streams, progress, JSON, Ctrl-C
    opening          from flags to a checkpoint, kernels and an engine
    answering        requests to a session over such an engine
    records          FILE.jsonl: an object, or a text in one of its fields, on each line
    calibration      the text that quantize calibrates on, and how long that takes
    exporting        quantize --format: from planish's own format to another
    auto             quantize --method auto: from a request to a search and its report
    program_cache    where compiled programs are stored
    joining          the other processes of --parallel
    process          the jax settings that the command changes
    methods          the table of docs/methods.md: every method on every grid
    demo, figures/   make demo, and the pictures of README and docs
    demo_formats     a model in other programs' formats, and back
    demo_model       a real model from PyPI
    demo_real        make demo-real
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.api import Model, convert, load, quantize
    from planish.compare.conformance.vectors.linear import LinearInputs, check_linear
    from planish.reference.errors import PlanishError

__all__ = [
    "LinearInputs",
    "Model",
    "PlanishError",
    "__version__",
    "check_linear",
    "convert",
    "load",
    "quantize",
]

try:
    __version__ = version("planish")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import the interface on first use: `planish --help` needs no NumPy."""
    if name not in __all__:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    if name in ("LinearInputs", "check_linear"):
        from planish.compare.conformance.vectors import linear

        return getattr(linear, name)
    from planish import api

    return getattr(api, name)
