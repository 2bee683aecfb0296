"""Rules of schemes that some program cannot take: group sizes, short groups, inputs."""

from __future__ import annotations

from collections.abc import Iterator

from planish.compare.lint.linear import StoredLinear
from planish.compare.lint.rules import Finding

VLLM = (-1, 32, 64, 128)
MLX = (32, 64, 128)
OF_VLLM = ("pack-quantized", "gptq", "awq")  # layouts that its kernels for weights alone take
OF_MLX = ("awq", "mlx")  # gptq, too, but it refuses any g_idx
OF_LLAMA = ("pack-quantized", "int-quantized", "gptq")


def check_groups(linear: StoredLinear) -> Iterator[Finding]:
    """Findings of a linear's group size and scheme."""
    size, cols, where = linear.group_size, linear.shape[1], linear.prefix
    words = "one scale a row" if size == -1 else f"groups of {size} inputs"
    if linear.format in OF_VLLM and size not in VLLM:
        yield Finding(rule="group-vllm", where=where, detail=words)
    if linear.format in OF_MLX and (size not in MLX or cols % size):
        yield Finding(rule="group-mlx", where=where, detail=words)
    if size > 0 and cols % size and linear.format in (*OF_VLLM, "int-quantized"):
        rule = "group-short-gptq" if linear.format == "gptq" else "group-short"
        yield Finding(rule=rule, where=where, detail=f"{cols} inputs in {words}")
    if (problem := refused_by_llama(linear)) is not None:
        yield Finding(rule="group-llama", where=where, detail=problem)
    if linear.format == "pack-quantized" and linear.scheme and not linear.scheme.symmetric:
        yield Finding(rule="asymmetric-transformers", where=where)
    if (problem := refused_by_vllm(linear)) is not None:
        yield Finding(rule="scheme-vllm", where=where, detail=problem)


def refused_by_llama(linear: StoredLinear) -> str | None:
    """Why llama.cpp's converter does not take a linear, or GGUF cannot hold it."""
    if linear.format not in OF_LLAMA:
        return None
    size, cols = linear.group_size, linear.shape[1]
    tensor = linear.scheme is not None and linear.scheme.granularity == "per_tensor"
    if linear.format == "pack-quantized" and size == -1:
        return "pack-quantized with one scale a row"
    if linear.format == "int-quantized" and (tensor or size > 0):
        return "int-quantized with one scale for all" if tensor else "int-quantized in groups"
    if cols % 32 or (size > 0 and size % 32):
        return f"{cols} inputs" if cols % 32 else f"groups of {size} inputs"
    return None


def refused_by_vllm(linear: StoredLinear) -> str | None:
    """The inputs that vLLM has no scheme for, in compressed-tensors."""
    if linear.scheme is None or linear.format not in ("int-quantized", "pack-quantized"):
        return None
    activation = linear.scheme.activation
    named = {"per_tensor": "dynamic inputs per tensor", "per_group": "dynamic inputs in groups"}
    return named.get(activation)
