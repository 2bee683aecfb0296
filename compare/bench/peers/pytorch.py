"""PyTorch on the CPU: the layers written out in eager operations, static caches.

    int8  torch.ops.quantized.linear_dynamic: activations are quantized per tensor at each call
          and multiplied by prepacked int8 weights, one scale for an output; with oneDNN, whose
          prompts are half as fast again as fbgemm's on the larger shapes, its steps the same
    bf16  torch.nn.functional.linear over bfloat16 weights, everything else in bfloat16 too
    int4  torch.ops.aten._weight_int4pack_mm_for_cpu: groups of 128 inputs, bfloat16 activations

q, k and v are one product, gate and up another: so few operations that eager mode costs little.
Not with torch.compile: it needs minutes and a C++ compiler where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from planish.compare.bench.peers import weights
from planish.compare.bench.peers.child import Job, serve
from planish.compare.bench.sizes import Shape

GROUP = 128  # inputs with one scale, INT4
TILES = 1  # an argument of the packing, without meaning on a CPU
BITS = {"int8": 8, "bf16": 8, "int4": 4}  # of the codes
BITS_PER_WEIGHT = {"int8": 8.0, "bf16": 16.0, "int4": 4 + 32 / GROUP}
FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}

Product = Callable[[torch.Tensor], torch.Tensor]


def int8_product(codes: np.ndarray) -> Product:
    outputs, inputs = codes.shape
    scales = torch.full((outputs,), float(weights.scale(inputs, 8)), dtype=torch.float64)
    zeros = torch.zeros(outputs, dtype=torch.int64)
    values = torch._make_per_channel_quantized_tensor(torch.from_numpy(codes), scales, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(values, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, False)


def bf16_product(codes: np.ndarray) -> Product:
    weight = torch.from_numpy(codes).to(torch.bfloat16)
    weight *= float(weights.scale(codes.shape[1], 8))
    return lambda x: linear(x, weight)


def int4_product(codes: np.ndarray) -> Product:
    """w = (q - 8) * scale + zero, with zero = 0."""
    outputs, inputs = codes.shape
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(codes.astype(np.int32)), TILES
    )
    steps = torch.zeros(inputs // GROUP, outputs, 2, dtype=torch.bfloat16)
    steps[:, :, 0] = float(weights.scale(inputs, 4))

    def product(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, inputs)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, steps)
        return y.reshape(*x.shape[:-1], outputs)

    return product


PRODUCTS = {"int8": int8_product, "bf16": bf16_product, "int4": int4_product}


class Torch:
    """The weights, and a cache for the sequences of the present question."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        torch.set_grad_enabled(False)
        torch.backends.quantized.engine = "onednn"
        self.shape, shape = job.shape, job.shape
        self.dtype = torch.float32 if job.format == "int8" else torch.bfloat16
        self.products = dict(products(shape, job.format))
        self.table = torch.from_numpy(weights.embedding(shape)).to(self.dtype)
        self.ones = torch.ones(shape.hidden, dtype=self.dtype)
        exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        self.frequency = (weights.THETA**-exponent).to(torch.float32)
        self.version = f"torch {torch.__version__}"
        self.weight_bytes = weights.linear_bytes(shape, BITS_PER_WEIGHT[job.format])

    def reset(self, batch: int, length: int) -> None:
        size = (self.shape.layers, 2, batch, self.shape.kv_heads, length, self.shape.head_dim)
        self.cache, self.length = torch.zeros(size, dtype=self.dtype), 0

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        x = self.table[torch.from_numpy(tokens)]  # [B, T, D]
        positions = torch.arange(self.length, self.length + tokens.shape[1])
        self.length += len(positions)
        self.cos, self.sin = self.rope_tables(positions)
        self.mask = self.causal_mask(positions)
        for layer in range(self.shape.layers):
            x = x + self.attend(layer, self.norm(x))
            x = x + self.mlp(layer, self.norm(x))
        return self.products["head", 0](self.norm(x[:, -1])).to(torch.float32).numpy()

    def causal_mask(self, positions: torch.Tensor) -> torch.Tensor | None:
        """[T, S], or nothing where attention is causal by itself: a whole prompt, or one token."""
        if len(positions) in (1, self.length):
            return None
        return torch.arange(self.length)[None, :] <= positions[:, None]

    def rope_tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, Hd]."""
        angle = positions.to(torch.float32)[:, None] * self.frequency
        both = torch.cat([angle, angle], 1)
        return both.cos().to(self.dtype), both.sin().to(self.dtype)

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, -1)
        return x * self.cos + torch.cat([-high, low], -1) * self.sin

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (self.shape.hidden,), self.ones, weights.EPS)

    def attend(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        shape, (batch, width, _) = self.shape, x.shape
        qkv = self.products["qkv", layer](x).view(batch, width, -1, shape.head_dim).transpose(1, 2)
        q, k, v = qkv.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)  # [B, heads, T, Hd]
        keys, values = self.cache[layer, :, :, :, : self.length]
        keys[:, :, -width:], values[:, :, -width:] = self.rope(k), v
        mixed = scaled_dot_product_attention(
            self.rope(q),
            keys,
            values,
            attn_mask=self.mask,
            is_causal=width == self.length,
            enable_gqa=shape.heads != shape.kv_heads,
        )
        return self.products["o", layer](mixed.transpose(1, 2).reshape(batch, width, -1))

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.products["gate_up", layer](x).chunk(2, -1)
        return self.products["down", layer](silu(gate) * up)


def products(shape: Shape, format: str) -> Iterator[tuple[tuple[str, int], Product]]:
    """The products of every layer and of the head, with what reads the same input side by side."""
    bits, sizes = BITS[format], weights.part_sizes(shape)
    for name, parts in FUSED.items():
        codes = np.concatenate([weights.codes(part, sizes[part], bits) for part in parts])
        starts = np.cumsum([0] + [sizes[part][0] for part in parts])
        for layer in range(shape.layers):
            yield (name, layer), PRODUCTS[format](rotated(codes, starts, layer))
    head = weights.codes("head", (shape.vocab, shape.hidden), bits)
    yield ("head", 0), PRODUCTS[format](head)


def rotated(codes: np.ndarray, starts: np.ndarray, layer: int) -> np.ndarray:
    """The rows of each part rotated by the layer's number, as `weights.linears` does."""
    parts = np.split(codes, starts[1:-1])
    return np.concatenate([np.roll(part, layer, axis=0) for part in parts])


if __name__ == "__main__":
    serve(Torch)
