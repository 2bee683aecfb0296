"""Write a mixture as a model directory: the base's tensors, copied, and the wider linears.

A base without changes is copied as it is, so what was measured is what is written.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from planish.compare.quality.mixture import Mixture
from planish.reference.files.load import load_block
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.experts import stack_linears
from planish.reference.model.weights import block_linears, split_expert
from planish.reference.quantize.output import WRITTEN
from planish.reference.quantize.schemes import schemes_to_write
from planish.reference.quantized import LAYOUTS, QuantizedWeight
from planish.reference.scheme import Scheme


def write_mixture(mixture: Mixture, writer: CheckpointWriter) -> None:
    """Write every tensor and config.json; the writer's files that were added before stay.

    Quantized weights are in the layout of the base's.
    """
    changed = changed_prefixes(mixture)
    for name, entry in mixture.base.quantized.entries.items():
        if name.rpartition(".")[0] not in changed:
            writer.add(name, entry.map())
    for layer in sorted({layer for layer, _ in mixture.changes}):
        add_changed(mixture, writer, layer)
    writer.finish(config_values(mixture))


def changed_prefixes(mixture: Mixture) -> set[str]:
    """The prefixes of the tensors of changed linears, as the base has them."""
    return {mixture.base.source.prefix(part, layer) for layer, part in mixture.changes}


def add_changed(mixture: Mixture, writer: CheckpointWriter, layer: int) -> None:
    """Write a block's changed linears; experts in stacks."""
    source, base = mixture.base.source, load_block(mixture.base.quantized, layer)
    linears = mixture.changed_linears(layer, block_linears(base), mixture.base.quantized.layout)
    stacks: dict[str, list[Linear]] = {}
    for part, linear in linears.items():
        general, expert = split_expert(part)
        if expert is not None:
            stacks.setdefault(general, []).append(linear)
        elif isinstance(linear.weight, QuantizedWeight):
            WRITTEN.write(writer, source.prefix(part, layer), linear)
        else:
            add_float(mixture, writer, layer, part, linear)
    for general, each in stacks.items():
        WRITTEN.write(writer, source.prefix(general, layer), stack_linears(each))


def add_float(
    mixture: Mixture, writer: CheckpointWriter, layer: int, part: str, linear: Linear
) -> None:
    """Write a float linear: in the source's type if no method rescaled it, else in float32."""
    source = mixture.base.source
    prefix = source.prefix(part, layer)
    for kind in ("weight", "bias"):
        tensor, entry = getattr(linear, kind), source.entries.get(f"{prefix}.{kind}")
        if entry is not None and not mixture.base.rescalings:
            writer.add(f"{prefix}.{kind}", entry.map())
        elif tensor is not None:
            writer.add(f"{prefix}.{kind}", np.asarray(tensor, np.float32))


def config_values(mixture: Mixture) -> dict[str, Any]:
    """The base's config.json with the schemes of the mixture."""
    values = copy.deepcopy(mixture.base.quantized.values)
    if mixture.changes:
        said = WRITTEN.config(written_schemes(mixture), mixture.base.quantized.layout or LAYOUTS[0])
        values["quantization_config"] = {**values["quantization_config"], **said}
    return values


def written_schemes(mixture: Mixture) -> dict[str, Scheme | None]:
    """The scheme of every linear by the name that planish writes."""
    source = mixture.base.source
    found = schemes_to_write(source, mixture.base.recipe)
    changed = mixture.changes.items()
    return found | {source.prefix(part, layer): scheme for (layer, part), scheme in changed}
