"""How quantized linears are stored, one file format a file.

fields     read the fields of a quantization_config, with type checks
planish    the format that planish writes

A format is a module with the functions of `Format`. A new one is one file and one row of FORMATS
(docs/adding-a-format.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from planish.reference.errors import ConfigError
from planish.reference.files.entries import Declared, Directory
from planish.reference.files.formats import planish
from planish.reference.files.writer import Sink
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.scheme import Scheme

Shape = tuple[int, ...]


class Format(Protocol):
    """One way to store quantized linears. `prefix` is a linear's name without `.weight`."""

    def detect(self, values: Mapping[str, Any]) -> bool:
        """Whether a quantization_config is of this format."""

    def parse(self, values: Mapping[str, Any], path: Path) -> Declared:
        """What a quantization_config declares; raises ConfigError for a bad value."""

    def scheme(self, directory: Directory, prefix: str, part: str) -> Scheme | None:
        """The scheme of a linear, None if it is in float. part: its name in its block, or head."""

    def companions(self, scheme: Scheme) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tensors beside `weight` that a linear must have, and those that it may have."""

    def read(
        self, directory: Directory, prefix: str, scheme: Scheme, shape: Shape, stack: Shape = ()
    ) -> Linear:
        """The linear [N, K] without its bias, checked, as a view of the file.

        stack: (E,) for E stacked experts.
        """

    def write(self, sink: Sink, prefix: str, layer: Linear) -> None:
        """Add a linear's tensors, its bias among them, in the layout that its weight has."""

    def write_scales(self, sink: Sink, prefix: str, scales: AttentionScales) -> None:
        """Add the calibrated scales of attention; prefix: of the module that has its linears."""

    def read_scales(self, directory: Directory, prefix: str) -> AttentionScales:
        """The calibrated scales of attention, checked."""

    def config(self, schemes: Mapping[str, Scheme | None], layout: str) -> dict[str, Any]:
        """The quantization_config of linears with these schemes, by prefix."""


FORMATS: dict[str, Format] = {"planish": planish}


def find_format(values: Mapping[str, Any], path: Path) -> Format:
    """The format of a quantization_config; raises ConfigError for one that cannot be read."""
    for form in FORMATS.values():
        if form.detect(values):
            return form
    found, name = repr(values.get("quant_method")), "quantization_config.quant_method"
    expected = f"one of {', '.join(FORMATS)}"
    raise ConfigError("cannot be read", path=path, name=name, expected=expected, found=found)
