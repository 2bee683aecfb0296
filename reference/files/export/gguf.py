"""Write a model as one GGUF file, which llama.cpp loads: Q4_0, Q4_1, Q8_0, and floats.

    linear                                   type    needs
    int4 without zero points                 Q4_0    scales exact in float16
    int4 with zero points or offsets         Q4_1    scales, and -scale * zero point, exact in it
    int8, by row, tensor or groups           Q8_0    scales exact in float16
    float                                    F32, F16 or BF16, as it is stored or as dtype says
    norms and biases                         F32

Blocks are of 32 inputs: the scale of a coarser group is repeated, which loses nothing, and K must
be a multiple of 32. Codes are never changed, so what a type cannot hold is refused. llama.cpp
interleaves the rows of q and k of Llama (formats/gguf.py). Inputs are floats in the file: it
quantizes them in its own way.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from planish.reference.errors import OutputError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.gguf_container import Part, write_container
from planish.reference.files.export.gguf_keys import check_keys, config_keys, family, rope_part
from planish.reference.files.export.gguf_parts import Plan, list_parts
from planish.reference.files.export.gguf_vocabulary import chat_keys, vocabulary_keys
from planish.reference.files.export.protocol import Request
from planish.reference.files.formats.gguf import INTERLEAVED
from planish.reference.files.placing import check_new_file, create_file
from planish.reference.text.tokenizer import load_tokenizer

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # llama_ftype


def write_gguf(checkpoint: Checkpoint, out: Path, request: Request) -> None:
    """Write a model and its tokenizer as the file `out`, one tensor in memory at a time.

    Raises RecipeError for a linear or a config that GGUF cannot hold, TokenizerError for such a
    tokenizer, QuantizationError for floats that overflow in the dtype; nothing is then written.
    """
    check_gguf_path(out, request.overwrite)
    parts, keys = plan_gguf(checkpoint, request.dtype)
    keys |= vocabulary_keys(load_tokenizer(checkpoint.tokenizer_path, checkpoint.config))
    keys |= chat_keys(checkpoint.tokenizer_path, keys)
    check_keys(checkpoint, keys, parts)
    with create_file(out, request.overwrite) as file:
        write_container(file, keys | {"general.quantized_by": request.program}, parts)


def check_gguf_path(out: Path, overwrite: bool) -> None:
    """Raise OutputError for a path at which no GGUF file can be written, or none be found again."""
    if out.suffix != ".gguf":
        expected = "a name that ends in .gguf"
        raise OutputError("is not the name of a GGUF file", path=out, expected=expected)
    check_new_file(out, overwrite)


def plan_gguf(
    checkpoint: Checkpoint, dtype: str | None = None
) -> tuple[dict[str, Part], dict[str, Any]]:
    """Tensors, and keys without those of the tokenizer; RecipeError for what GGUF cannot hold."""
    name = family(checkpoint)
    plan = Plan(checkpoint=checkpoint, dtype=dtype, interleaved=name in INTERLEAVED)
    parts = rope_part(checkpoint.config) | list_parts(plan)
    return parts, config_keys(checkpoint, name) | general_keys(checkpoint, parts)


def general_keys(checkpoint: Checkpoint, parts: dict[str, Part]) -> dict[str, Any]:
    """The name, and the commonest type of a matrix."""
    matrices = Counter(part.type for part in parts.values() if len(part.shape) > 1)
    name = checkpoint.values.get("_name_or_path") or checkpoint.path.resolve().stem
    kind = FILE_TYPES[matrices.most_common(1)[0][0]]
    keys = {"general.name": str(name), "general.file_type": kind}
    return keys | {"general.quantization_version": 2}
