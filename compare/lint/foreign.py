"""Linears of other programs, through the readers of reference/files/formats."""

from __future__ import annotations

from collections.abc import Iterator

from planish.compare.lint.linear import Readable, StoredLinear, on_grid, read_or_report
from planish.compare.lint.opened import Opened
from planish.compare.lint.rules import Finding
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats import READERS, gptq, mlx
from planish.reference.files.formats.config_groups import find_group
from planish.reference.files.safetensors import TensorEntry

SCALES = ("weight_scale", "weight_scale_inv", "scales", "_weight_scale", "SCB")


def read_foreign(opened: Opened) -> Iterator[Readable]:
    """Every quantized linear and embedding; ConfigError for a config that no linear can follow."""
    for prefix in READERS[opened.format].linears(opened.source):
        yield (found := read_or_report(prefix, lambda name: read_linear(opened, name)))
        if isinstance(found, Finding) and (rest := scales_alone(opened, prefix)) is not None:
            yield rest


def scales_alone(opened: Opened, prefix: str) -> StoredLinear | None:
    """What can be looked at of a linear that cannot be read: its scales."""
    entry = find_scale(opened, prefix)
    if entry is None or entry.dtype not in FLOATS or 0 in entry.shape:
        return None
    return StoredLinear(
        prefix=prefix,
        format=opened.format,
        bits=0,
        shape=(0, 0),
        group_size=0,
        scale=entry.map,
        scale_type=entry.dtype,
    )


def find_scale(opened: Opened, prefix: str) -> TensorEntry | None:
    """The entry of a linear's scales, by the name that its format has for them."""
    names = (f"{prefix}.{kind}" for kind in SCALES)
    return next((opened.entries[name] for name in names if name in opened.entries), None)


def read_linear(opened: Opened, prefix: str) -> StoredLinear:
    """One linear; PlanishError if its tensors and the config contradict each other."""
    source = opened.source
    stored = READERS[opened.format].read(source, prefix)
    entry = find_scale(opened, prefix)
    assert entry is not None  # the reader has found it
    form = name_layout(opened, prefix)
    if stored.scheme is not None:
        return on_grid(prefix, form, bits_of(opened, prefix), stored, entry.dtype)
    embedding = opened.format == "mlx"  # the only one that is not FP8
    bits, size = mlx.settings(source, prefix) if embedding else (8, 0)
    return StoredLinear(
        prefix=prefix,
        format=form,
        bits=bits,
        shape=stored.shape,
        scale=entry.map,
        scale_type=entry.dtype,
        group_size=size,
        offset=source.entries[f"{prefix}.biases"].map if embedding else None,
        weights=stored.codes,
    )


def bits_of(opened: Opened, prefix: str) -> int:
    """The bits of a code in the file: 2-bit codes of GPTQ are on planish's grid of 4."""
    source = opened.source
    if opened.format == "compressed-tensors":
        return int(find_group(source, prefix)["weights"]["num_bits"])
    if opened.format == "mlx":
        return mlx.settings(source, prefix)[0]
    if name_layout(opened, prefix) == "gptq":
        return gptq.check_shapes(source, prefix)[0]
    return 4 if opened.format in ("awq", "auto-round") else 8


def name_layout(opened: Opened, prefix: str) -> str:
    """The name of the layout in which a linear is stored."""
    source = opened.source
    if opened.format == "auto-round":
        return "awq" if "awq" in str(source.values.get("packing_format")) else "gptq"
    if opened.format != "compressed-tensors":
        return opened.format.partition(",")[0]
    if f"{prefix}.weight_packed" in source.entries:
        return "pack-quantized"
    weight = source.entries.get(f"{prefix}.weight")
    floats = weight is not None and weight.dtype == "F8_E4M3"
    return "float-quantized" if floats else "int-quantized"
