"""Write models for other programs, and in planish's own format: without changing a number.

convert              from a checkpoint and a format to a directory: the entry
protocol             what a format is to the exporter, and what a conversion is asked for
modules              a checkpoint's modules under Hugging Face's names
codes                whole codes, zero points, and finer groups
dtypes               cast float tensors, declare what holds every scale
directory            write quantized linears in another program's format, or all in floats
planish              write planish's own format, or its other layout
targets              how a config names the linears of each scheme

Formats of other programs:

compressed_tensors   integers of 4 and 8 bits, as vLLM and transformers load them

A format of safetensors directories is a module with the functions of protocol.Writer and a row of
WRITERS (docs/adding-a-format.md).
"""

from __future__ import annotations

from planish.reference.files.export import compressed_tensors
from planish.reference.files.export.protocol import Writer

WRITERS: dict[str, Writer] = {"compressed-tensors": compressed_tensors}
