"""Write models for other programs, and in planish's own format: without changing a number.

convert              from a checkpoint and a format to a directory: the entry
protocol             what a format is to the exporter, and what a conversion is asked for
modules              a checkpoint's modules under Hugging Face's names
tied                 an embedding with codes, which may be the head's, too
codes                whole codes, zero points, and finer groups
dtypes               cast float tensors, declare what holds every scale
directory            write quantized linears in another program's format, or all in floats
planish              write planish's own format, or its other layout
targets              how a config names the linears of each scheme

Formats of other programs:

compressed_tensors   integers of 4 and 8 bits, as vLLM and transformers load them
integers             what formats with integer zero points and float16 scales hold exactly
gptq                 GPTQ versions 1 and 2, as GPTQModel loads them
awq                  AWQ in the layout gemm, as GPTQModel and AutoAWQ load it
mlx                  MLX affine, as mlx-lm loads it
gguf                 a model as one file, for llama.cpp
gguf_parts           its tensors
gguf_types           the type that holds a linear, and the codes in it
gguf_blocks          blocks of 32 codes
gguf_keys            the config as keys
gguf_vocabulary      the tokenizer as keys
gguf_container       the file itself

A format of safetensors directories is a module with the functions of protocol.Writer and a row of
WRITERS (docs/adding-a-format.md).
"""

from __future__ import annotations

from planish.reference.files.export import awq, compressed_tensors, gptq, mlx
from planish.reference.files.export.protocol import Writer

WRITERS: dict[str, Writer] = {
    "compressed-tensors": compressed_tensors,
    "gptq": gptq.VERSION_1,
    "gptq_v2": gptq.VERSION_2,
    "awq": awq,
    "mlx": mlx,
}
