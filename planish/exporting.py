"""Quantize into another program's format: planish's own first, hidden beside OUT, then converted.

    check_export    before anything is computed: can the format hold what the recipe makes?
    open_writer     the writer of the quantization
    finish_export   convert what it wrote, and remove it

So blocks are kept and resumed as always (files/partial.py), until OUT appears at the end, whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from planish import __version__
from planish.reference.errors import RecipeError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.convert import check_conversion, convert
from planish.reference.files.export.gguf import check_gguf_path
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import open_checkpoint
from planish.reference.files.partial import Partial
from planish.reference.files.placing import hidden_beside
from planish.reference.files.writer import CheckpointWriter, remove_directory
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.output import as_quantized
from planish.reference.quantize.recipe import Recipe

PROGRAM = f"planish {__version__}"


def export_request(form: str | None, overwrite: bool, progress: Progress = no_progress) -> Request:
    """What `quantize --format` asks for; planish's own format by default."""
    return Request(
        format=form or "planish", overwrite=overwrite, program=PROGRAM, progress=progress
    )


def intermediate_layout(form: str | None, layout: str | None) -> str:
    """The layout to quantize into: that of --layout, or canonical for another program's format."""
    if form in (None, "planish"):
        return layout or "tiles"
    if layout is not None:
        raise RecipeError("is for --format planish", name="layout", found=form)
    return "canonical"


def check_export(checkpoint: Checkpoint, recipe: Recipe, request: Request) -> None:
    """Raise RecipeError unless the format can hold every linear that the recipe makes."""
    if request.format != "planish":
        check_conversion(as_quantized(checkpoint, recipe), request)


def open_writer(
    out: str | Path, model: str | Path, request: Request, partial: Partial
) -> CheckpointWriter:
    """The writer of a quantization: of `out`, or of a hidden directory beside it."""
    if request.format == "gguf":
        check_gguf_path(Path(out), request.overwrite)
        return CheckpointWriter(hidden_beside(Path(out)), model, partial=partial)
    own = CheckpointWriter(out, model, request.overwrite, partial)  # checks `out`
    if request.format == "planish":
        return own
    return CheckpointWriter(hidden_beside(Path(out)), model, partial=partial)


def finish_export(writer: CheckpointWriter, out: str | Path, request: Request) -> None:
    """Convert what a writer has finished, if `out` is in another format, and remove it.

    Call it within the writer's block: after a failure its pieces are kept.
    """
    if request.format == "planish":
        return
    try:
        convert(open_checkpoint(writer.target), out, replace(request, layout=None))
    finally:
        remove_directory(writer.target)
