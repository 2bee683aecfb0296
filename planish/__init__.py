"""SmoothQuant W8A8 and INT4 language models on CPUs: defined, run fast, compared.

From Python (api):

    planish.load, planish.quantize, planish.PlanishError, planish.__version__

The rooms: reference/ defines, fast/ runs, compare/ judges, pocket/ is the embedded model. The
command `planish`, the only room where flags are read:

    command          words to a verb, errors to one line and an exit code
    verbs/           one file for each verb
    terminal/        flags, streams, progress, JSON, Ctrl-C
    opening          from flags to a checkpoint, kernels and an engine
    calibration      which text quantize calibrates on, and how long that takes
    program_cache    where compiled programs are kept
    process          what the command claims of jax's settings
    demo, figures/   make demo, and the pictures of README and docs
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.api import Model, load, quantize
    from planish.reference.errors import PlanishError

__all__ = ["Model", "PlanishError", "__version__", "load", "quantize"]

try:
    __version__ = version("planish")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """The interface, imported when it is asked for: `planish --help` needs no NumPy."""
    if name not in __all__:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    from planish import api

    return getattr(api, name)
