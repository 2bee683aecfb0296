"""Fused tensors: q, k and v, or gate and up, in one tensor of the source.

Float ones are cut when they are read (load.py). A quantized one of another program becomes one
linear for each part: scales, zero points and offsets belong to rows, so nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planish.reference.errors import CheckpointError
from planish.reference.files.entries import Declared
from planish.reference.files.formats.stored import compute_entry
from planish.reference.files.safetensors import TensorEntry
from planish.reference.model.shapes import Shape, block_shapes, outer_shapes
from planish.reference.model.weights import split_expert
from planish.reference.scheme import Scheme

if TYPE_CHECKING:
    from planish.reference.files.checkpoint import Checkpoint

OF_ROWS = ("weight", "weight_scale", "weight_zero_point", "weight_offset")
OF_INPUTS = ("weight_permutation", "input_scale", "input_zero_point")  # the same for every part


def fused_shapes(
    checkpoint: Checkpoint, part: str, layer: int | None
) -> Iterator[tuple[str, Shape]]:
    """The linears that are fused in one tensor, this one among them, and their shapes."""
    if layer is None:
        yield part, outer_shapes(checkpoint.config)[part]
        return
    shapes, (general, _) = block_shapes(checkpoint.config, layer), split_expert(part)
    for other in checkpoint.architecture.fused_modules(general):
        name = part.removesuffix(general.rpartition(".")[2]) + other.rpartition(".")[2]
        yield name, shapes[name][0]


def split_fused(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a linear for each part of its fused quantized tensors.

    Raises CheckpointError for one that is transposed or has another number of rows.
    """
    declared = checkpoint.declared
    if declared is None:
        return checkpoint
    entries, targets = dict(checkpoint.entries), dict(declared.targets)
    whole = set[str]()
    for layer in range(checkpoint.config.num_layers):
        for part in block_shapes(checkpoint.config, layer):
            name = checkpoint.source(part, layer).name
            own = checkpoint.prefix(part, layer)
            if name != own and name in declared.targets:
                scheme = declared.targets[name]
                entries |= _cut(checkpoint, part, layer, scheme)
                targets[own] = scheme
                whole.add(name)
    for name in whole:
        targets.pop(name)
        for kind in (*OF_ROWS, *OF_INPUTS):
            entries.pop(f"{name}.{kind}", None)
    split = Declared(layout=declared.layout, targets=targets)
    return replace(checkpoint, entries=entries, declared=split)


def _cut(checkpoint: Checkpoint, part: str, layer: int, scheme: Scheme) -> dict[str, TensorEntry]:
    """The tensors of one part."""
    source, own = checkpoint.source(part, layer), checkpoint.prefix(part, layer)
    weight = checkpoint.entries[f"{source.name}.weight"]
    rows = rows_of(checkpoint, part, layer)
    total = sum(shape[0] for _, shape in fused_shapes(checkpoint, part, layer))
    if source.transposed or weight.shape[0] != total:
        expected = f"{total} rows of outputs" if not source.transposed else "weights [out, in]"
        raise CheckpointError(
            "cannot be split",
            path=checkpoint.path,
            name=source.name,
            expected=expected,
            found=list(weight.shape),
        )
    found = {}
    for kind in (*OF_ROWS, *OF_INPUTS):
        entry = checkpoint.entries.get(f"{source.name}.{kind}")
        if entry is None:
            continue
        by_rows = kind in OF_ROWS and entry.shape[0] == total
        one = scheme.granularity == "per_tensor" and kind != "weight"
        found[f"{own}.{kind}"] = _take(entry, rows) if by_rows and not one else entry
    return found


def _take(entry: TensorEntry, rows: np.ndarray) -> TensorEntry:
    """Some rows of a tensor."""
    shape = (len(rows), *entry.shape[1:])
    return compute_entry(entry.file, entry.dtype, shape, lambda: entry.map()[rows])


def rows_of(checkpoint: Checkpoint, part: str, layer: int | None) -> np.ndarray:
    """The rows of a part in its fused tensor, int [N]; those of a key-value head are together."""
    shapes = dict(fused_shapes(checkpoint, part, layer))
    groups = checkpoint.config.num_kv_heads if checkpoint.source(part, layer).grouped else 1
    counts = [shape[0] // groups for shape in shapes.values()]
    start = sum(counts[: list(shapes).index(part)])
    every = np.arange(sum(counts) * groups).reshape(groups, sum(counts))
    return every[:, start : start + shapes[part][0] // groups].reshape(-1)
