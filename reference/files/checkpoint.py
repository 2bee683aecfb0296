"""An opened model directory: its config, names and schemes of its linears; no tensor is read.

opening.py opens one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from planish.reference.architectures import Architecture, Tensor
from planish.reference.errors import ConfigError
from planish.reference.files.entries import Declared
from planish.reference.files.formats import Format
from planish.reference.files.formats.translate import Origin
from planish.reference.files.names import base_names
from planish.reference.files.safetensors import TensorEntry
from planish.reference.gguf import GgufFile
from planish.reference.model.config import ModelConfig
from planish.reference.model.shapes import block_shapes
from planish.reference.model.weights import split_expert
from planish.reference.scheme import HEAD_ACTIVATIONS, Scheme


@dataclass(frozen=True)
class Checkpoint:
    """An opened directory: headers read and checked, tensors not read yet.

    entries has the architecture's names, without a wrapper's prefix.
    """

    path: Path
    values: dict[str, Any]  # config.json, unchanged
    config: ModelConfig
    architecture: Architecture
    entries: dict[str, TensorEntry]
    unused: dict[str, TensorEntry] = field(default_factory=dict)  # not read by the model
    learned_positions: int | None = None  # rows of the table, if more than config.max_positions
    format: Format | None = None  # of quantized weights; None in a float model
    declared: Declared | None = None  # what quantization_config declares
    origin: Origin | None = None  # of what another program wrote
    config_path: Path | None = None  # the directory given with a GGUF file, of its config
    gguf: GgufFile | None = field(default=None, repr=False, compare=False)  # as it was parsed

    @property
    def tokenizer_path(self) -> Path:
        """The directory or the GGUF file that has the tokenizer."""
        return self.path if self.config_path is None else self.config_path

    @property
    def quantization(self) -> dict[str, Any] | None:
        return self.values.get("quantization_config")

    @property
    def layout(self) -> str | None:
        """The layout of quantized weights in the files (quantized.py); None in a float model."""
        return None if self.declared is None else self.declared.layout

    def scheme(self, part: str, layer: int | None = None) -> Scheme | None:
        """The scheme of a linear, or of all experts' (`experts.up`); None if it is in float.

        Raises ConfigError for a scheme that the linear cannot have.
        """
        if self.format is None or not can_be_quantized(part):
            return None
        prefix = self.prefix(part, layer)
        scheme = self.format.scheme(self, prefix, part)
        expected = None
        if part == "head" and scheme and scheme.activation not in HEAD_ACTIVATIONS:
            expected = f"activations {', '.join(HEAD_ACTIVATIONS)}"
        if part.startswith("experts.") and scheme and scheme.input_zero_point:
            expected = "symmetric inputs of experts"
        if expected is not None and scheme is not None:
            found = str(scheme) if scheme.input_zero_point else scheme.activation
            raise ConfigError(
                "bad scheme", path=self.path, name=prefix, expected=expected, found=found
            )
        return scheme

    def source(self, part: str, layer: int | None = None) -> Tensor:
        """The source's tensor for a linear or norm, under the name that this directory uses.

        `experts.gate` gives the stacked experts' name: that without the expert's number.
        """
        general, expert = split_expert(part)
        tensor = self.architecture.tensor(general)
        names = [tensor.name, *tensor.also]
        names = names if expert is not None else [name.replace(".{e}", "") for name in names]
        names = [name.format(i=layer, e=expert, h="{h}") for name in names]
        names = [name.removeprefix(self.left_off) for name in names]
        there = (name for name in names if f"{name}.weight".format(h=0) in self.entries)
        return replace(tensor, name=next(there, names[0]))

    def prefix(self, part: str, layer: int | None = None) -> str:
        """The tensor-name prefix under which planish writes a linear or norm, and looks for it.

        It differs from the source's name if that tensor is fused, transposed or has 1 subtracted,
        and for the weight that smoothing adds to a norm without one.
        """
        source, config = self.source(part, layer), self.config
        as_is = config.norm_affine and not config.norm_plus_one
        plain = source.plain and (as_is or not part.endswith("norm"))
        name = source.name.replace(".{h}", "")
        return name if plain else f"{name}.{part}"

    @property
    def has_attention_scales(self) -> bool:
        """Whether calibrated scales of attention are stored (docs/file-format.md)."""
        return self.declared is not None and self.declared.kv_cache == "int8_static"

    def attention_prefix(self, layer: int) -> str:
        """The prefix of a layer's attention, beside whose linears its scales are stored."""
        return self.source("o", layer).name.rpartition(".")[0]

    def has_stacked_experts(self, layer: int) -> bool:
        """Whether a layer's experts are stacked: one tensor for all gates, ups or downs."""
        if self.format is None or not self.config.layers[layer].experts:
            return False
        return self.scheme("experts.up", layer) is not None

    def stored_prefix(self, part: str, layer: int | None = None) -> str:
        """Prefix of the stored tensor that contains this linear, alone, fused or stacked."""
        general, expert = split_expert(part)
        if expert is not None and layer is not None and self.has_stacked_experts(layer):
            return self.prefix(general, layer)
        own = self.prefix(part, layer)
        return own if f"{own}.weight" in self.entries else self.source(part, layer).name

    def schemes(self) -> dict[str, Scheme | None]:
        """The scheme of every linear that can be quantized, by the prefix of its stored tensor.

        Stacked experts are one entry.
        """
        found = {
            self.stored_prefix(part, layer): self.scheme(self._stored_part(part, layer), layer)
            for layer in range(self.config.num_layers)
            for part in block_shapes(self.config, layer)
            if part != "router"
        }
        return found | {self.prefix("head"): self.scheme("head")}

    def _stored_part(self, part: str, layer: int) -> str:
        """experts.3.gate -> experts.gate if this layer's experts are stacked."""
        general, expert = split_expert(part)
        return general if expert is not None and self.has_stacked_experts(layer) else part

    @cached_property
    def left_off(self) -> str:
        """The prefix of the architecture's names that this directory omits."""
        embed, base = base_names(self.architecture)
        left_off = embed not in self.entries and embed.removeprefix(base) in self.entries
        return base if left_off else ""


def can_be_quantized(part: str) -> bool:
    """Whether this is lm_head or a linear of a block other than the router."""
    general, _ = split_expert(part)
    return general.rpartition(".")[2] in (*"qkvo", "gate", "up", "down", "head")


def head_names(checkpoint: Checkpoint, source: str, part: str) -> list[str]:
    """The names of a norm that is stored as one tensor for each head."""
    config = checkpoint.config
    heads = config.num_heads if part == "q_norm" else config.num_kv_heads
    return [source.format(h=head) for head in range(heads)]
