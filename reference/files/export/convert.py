"""Convert a checkpoint to another format, one block at a time, without changing a number.

Codes and scales are carried over, never computed again. What a format cannot hold is refused before
anything is written, in a line that names the linear and the nearest format that can. `float` is the
model in floats: dequantized, with what smoothing folded into it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from planish.reference.errors import RecipeError, suggest
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export import WRITERS
from planish.reference.files.export.directory import stored_schemes, write_floats, write_format
from planish.reference.files.export.dtypes import require_dtype
from planish.reference.files.export.gguf import plan_gguf, write_gguf
from planish.reference.files.export.planish import choose_layout, write_planish
from planish.reference.files.export.protocol import Request
from planish.reference.files.export.tied import tie

Export = Callable[[Checkpoint, Path, Request], None]
EXPORTS: dict[str, Export] = {
    "planish": write_planish,
    **{name: partial(write_format, form=form) for name, form in WRITERS.items()},
    "gguf": write_gguf,
    "float": write_floats,
}


def convert(checkpoint: Checkpoint, out: str | Path, request: Request) -> None:
    """Write the checkpoint to `out` in another format, whole or not at all.

    Raises RecipeError for a format or dtype that is unknown, or a linear that the format cannot
    hold; QuantizationError for numbers that overflow in the dtype; OutputError for `out`.
    """
    check_request(request)
    EXPORTS[request.format](checkpoint, Path(out), request)


def check_conversion(checkpoint: Checkpoint, request: Request) -> None:
    """Raise RecipeError unless the format can hold every linear, before anything is written."""
    check_request(request)
    if request.format in WRITERS:
        form = WRITERS[request.format]
        stored_schemes(tie(checkpoint, form), form)
    if request.format == "planish":
        choose_layout(checkpoint, request.layout)
    if request.format == "gguf":
        plan_gguf(checkpoint, request.dtype)


def check_request(request: Request) -> None:
    """Raise RecipeError for an unknown format, or an option of another one."""
    if request.format not in EXPORTS:
        expected = f"one of {', '.join(EXPORTS)}{suggest(request.format, EXPORTS)}"
        raise RecipeError("unknown", name="format", expected=expected, found=repr(request.format))
    require_dtype(request.dtype)
    own = request.format == "planish"
    if not own and request.layout is not None:
        raise RecipeError("is for --format planish", name="layout", found=request.format)
    if own and request.dtype is not None:
        raise RecipeError("is for other formats: planish keeps every type", name="dtype")
