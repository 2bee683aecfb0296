"""How quantized linears are stored, one file format a file.

fields     read the fields of a quantization_config, with type checks
scales     check that scales are finite and not 0
planish    the format that planish writes
planish_linears   its linears, read and checked

Of other programs, which are only read:

stored               a linear as it is stored, and the same under planish's names
translate            a directory's tensors under planish's names
words                codes packed into 32-bit words
offsets              float offsets that are zero points
compressed_tensors   llm-compressor, AutoRound: integers of 2 to 8 bits, FP8
config_groups        its config: which scheme a linear has
gptq                 GPTQModel, AutoGPTQ, Neural Compressor
awq                  AutoAWQ, GPTQModel
autoround            the layouts of GPTQ and AWQ under AutoRound's config
fp8                  float8 with scales, as DeepSeek and Qwen publish
mlx                  Apple's MLX, with a float offset for each group
int8_rows            torchao, bitsandbytes: INT8 with a scale for each row
gguf                 llama.cpp: the tensors of a GGUF file
gguf_config          config.json from its keys
gguf_blocks          the blocks of its types
report               what inspect says about it
refused              what is recognized and not read

A format is a module with the functions of `Format`, and a row of FORMATS; one of another program
is a module with the functions of translate.Reader and `detect`, and a row of READERS
(docs/adding-a-format.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from planish.reference.errors import ConfigError
from planish.reference.files.entries import Declared, Directory
from planish.reference.files.formats import (
    autoround,
    awq,
    compressed_tensors,
    fp8,
    gptq,
    int8_rows,
    mlx,
    planish,
)
from planish.reference.files.formats.refused import refuse_known
from planish.reference.files.formats.translate import Reader
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


class Detecting(Reader, Protocol):
    """A reader in the table."""

    def detect(self, values: Mapping[str, Any]) -> bool:
        """Whether a quantization_config is of this format."""


FORMATS: dict[str, Format] = {"planish": planish}
READERS: dict[str, Detecting] = {  # the first that detects its config reads
    "compressed-tensors": compressed_tensors,
    "awq": awq,
    "gptq": gptq,
    "auto-round": autoround,
    "fp8": fp8,
    "torchao, bitsandbytes int8": int8_rows,
    "mlx": mlx,
}


def find_reader(values: Mapping[str, Any]) -> str | None:
    """The name in READERS of the format of another program, None if it is none of them."""
    return next((name for name, reader in READERS.items() if reader.detect(values)), None)


def find_format(values: Mapping[str, Any], path: Path) -> Format:
    """The format of a quantization_config; raises ConfigError for one that cannot be read."""
    for form in FORMATS.values():
        if form.detect(values):
            return form
    refuse_known(values, path)
    found, name = repr(values.get("quant_method")), "quantization_config.quant_method"
    expected = f"one of {', '.join([*FORMATS, *READERS])}"
    raise ConfigError("cannot be read", path=path, name=name, expected=expected, found=found)
