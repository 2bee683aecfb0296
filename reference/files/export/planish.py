"""Write planish's own format: another program's checkpoint, or planish's in another layout.

Codes and scales are carried over. A scheme that says more than its codes need, such as INT8 that
may be -128, is narrowed where that makes it one of planish's own, which the kernels know best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.reference.errors import RecipeError, suggest
from planish.reference.files.blocks import add_block, put_in_layout
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.directory import (
    add_architectures,
    add_tokenizer,
    without_quantization,
)
from planish.reference.files.export.protocol import Request
from planish.reference.files.formats import FORMATS
from planish.reference.files.load import load_block, load_linear
from planish.reference.files.safetensors import forget_entries
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.shapes import outer_kinds, outer_shapes
from planish.reference.model.weights import block_linears, replace_modules, split_expert
from planish.reference.quantized import LAYOUTS, QuantizedWeight
from planish.reference.scheme import Scheme

OWN = FORMATS["planish"]
KEPT = (  # of how it was made
    *("source", "recipe", "method", "rule", "smoothing", "calibration", "clip_inputs"),
)


def write_planish(checkpoint: Checkpoint, out: Path, request: Request) -> None:
    """Write a directory of planish's, with the same codes; a float model as it is."""
    layout = choose_layout(checkpoint, request.layout)
    schemes: dict[str, Scheme | None] = {}
    with CheckpointWriter(out, checkpoint.path, request.overwrite) as sink:
        _add_outer(checkpoint, sink, layout, schemes)
        for layer in request.progress(range(checkpoint.config.num_layers), "convert"):
            block = load_block(checkpoint, layer, tiled=layout == "tiles")
            linears = narrow_all(block_linears(block))
            for part, linear in linears.items():
                schemes[checkpoint.prefix(split_expert(part)[0], layer)] = linear.scheme
            add_block(checkpoint, sink, layer, replace_modules(block, linears), layout, raw=True)
            forget_entries(checkpoint.entries)
        add_tokenizer(checkpoint, sink)
        sink.finish(_values(checkpoint, schemes, layout))


def choose_layout(checkpoint: Checkpoint, asked: str | None) -> str:
    """The layout of the codes: tiles if files have them for every scheme, or what is asked for."""
    schemes = [scheme for scheme in checkpoint.schemes().values() if scheme is not None]
    without = next((scheme for scheme in schemes if scheme.canonical_in_files), None)
    if asked not in (None, *LAYOUTS):
        expected = f"one of {', '.join(LAYOUTS)}{suggest(str(asked), LAYOUTS)}"
        raise RecipeError("unknown", name="layout", expected=expected, found=repr(asked))
    if asked == "tiles" and without is not None:
        expected = f"canonical: {without} has no tiles"
        raise RecipeError("cannot be used", name="layout", expected=expected, found="tiles")
    return asked or ("tiles" if without is None else "canonical")


def narrow_all(linears: Mapping[str, Linear]) -> dict[str, Linear]:
    """Linears under narrower schemes where their codes allow; experts all or none."""
    groups: dict[str, list[str]] = {}
    for part in linears:
        groups.setdefault(split_expert(part)[0], []).append(part)
    found: dict[str, Linear] = {}
    for parts in groups.values():
        each = [linears[part] for part in parts]
        found |= dict(zip(parts, _narrow(each), strict=True))
    return {part: found[part] for part in linears}


def _narrow(linears: Sequence[Linear]) -> list[Linear]:
    """INT8 without -128 and negative scales, which is the grid of planish's own."""
    if not all(linear.scheme is not None and _is_own_grid(linear) for linear in linears):
        return [*linears]
    return [replace(linear, weight=_without_full_range(linear)) for linear in linears]


def _is_own_grid(linear: Linear) -> bool:
    weight: Any = linear.weight
    if not weight.scheme.full_range or weight.scheme.canonical_in_files:
        return False
    return bool(weight.codes.min() > -128 and (weight.scale > 0).all())


def _without_full_range(linear: Linear) -> QuantizedWeight:
    weight: Any = linear.weight
    narrow: QuantizedWeight = replace(weight, scheme=replace(weight.scheme, full_range=False))
    return narrow


def _add_outer(
    checkpoint: Checkpoint,
    sink: CheckpointWriter,
    layout: str,
    schemes: dict[str, Scheme | None],
) -> None:
    """Write what is outside the blocks; notes the scheme of lm_head."""
    config = checkpoint.config
    for part, kinds in outer_kinds(config).items():
        prefix, source = checkpoint.prefix(part), checkpoint.source(part).name
        if part == "head":
            schemes[prefix] = checkpoint.scheme("head")
            if schemes[prefix] is not None:
                shape = outer_shapes(config)["head"]
                head = load_linear(checkpoint, "head", None, shape, config.head_bias)
                (head,) = _narrow([head])
                schemes[prefix] = head.scheme
                OWN.write(sink, prefix, put_in_layout(head, layout))
                continue
            if config.tie_embeddings:
                continue
        for kind in kinds:
            sink.add(f"{source}.{kind}", checkpoint.entries[f"{source}.{kind}"].map())


def _values(
    checkpoint: Checkpoint, schemes: Mapping[str, Scheme | None], layout: str
) -> dict[str, Any]:
    """config.json: what is known of how the model was made is kept."""
    values, config = add_architectures(without_quantization(checkpoint.values)), checkpoint.config
    if not any(schemes.values()):
        return values
    old = checkpoint.quantization or {} if checkpoint.origin is None else {}
    said = OWN.config(schemes, layout)
    chosen = {"attention": config.attention, "kv_cache": config.kv_cache}
    said |= {key: value for key, value in chosen.items() if not value.startswith("float")}
    said |= {key: old[key] for key in KEPT if key in old}
    if checkpoint.origin is not None:
        said["source"] = f"{checkpoint.origin.format}, made by {checkpoint.origin.made_by}"
    return {**values, "quantization_config": said}
