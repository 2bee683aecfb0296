"""PyTorch on the CPU: the layers written out in eager operations, static caches.

    int8  torch.ops.quantized.linear_dynamic: activations are quantized per tensor at each call
          and multiplied by prepacked int8 weights with a scale for each output; with oneDNN, 1.5
          times as fast as fbgemm on prompts at the larger sizes, and as fast in decoding
    bf16  torch.nn.functional.linear over bfloat16 weights, everything else in bfloat16 too
    int4  torch.ops.aten._weight_int4pack_mm_for_cpu: groups of 128 inputs, bfloat16 activations

q, k and v are one product, gate and up another, so that eager mode adds little overhead.
torch.compile is not used: it needs minutes, and a C++ compiler on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from planish.compare.bench.peers import weights
from planish.compare.bench.peers.child import Job, serve
from planish.compare.bench.sizes import ModelSize

GROUP = 128  # inputs that share an INT4 scale
TILES = 1  # an argument of the packing that has no effect on a CPU
BITS = {"int8": 8, "bf16": 8, "int4": 4}  # of the codes
BITS_PER_WEIGHT = {"int8": 8.0, "bf16": 16.0, "int4": 4 + 32 / GROUP}
FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}

Product = Callable[[torch.Tensor], torch.Tensor]


def make_int8_product(codes: np.ndarray) -> Product:
    outputs, inputs = codes.shape
    scales = torch.full((outputs,), float(weights.scale(inputs, 8)), dtype=torch.float64)
    zeros = torch.zeros(outputs, dtype=torch.int64)
    values = torch._make_per_channel_quantized_tensor(torch.from_numpy(codes), scales, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(values, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, False)


def make_bf16_product(codes: np.ndarray) -> Product:
    weight = torch.from_numpy(codes).to(torch.bfloat16)
    weight *= float(weights.scale(codes.shape[1], 8))
    return lambda x: linear(x, weight)


def make_int4_product(codes: np.ndarray) -> Product:
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


PRODUCTS = {"int8": make_int8_product, "bf16": make_bf16_product, "int4": make_int4_product}


class Torch:
    """The weights, and a cache for the sequences of the current question."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        torch.set_grad_enabled(False)
        torch.backends.quantized.engine = "onednn"
        self.sizes, sizes = job.sizes, job.sizes
        engine = torch.backends.quantized.engine
        self.kernels = f"{engine}, {torch.backends.cpu.get_cpu_capability()}"
        self.dtype = torch.float32 if job.format == "int8" else torch.bfloat16
        self.products = dict(make_products(sizes, job.format))
        self.table = torch.from_numpy(weights.make_embedding(sizes)).to(self.dtype)
        self.ones = torch.ones(sizes.hidden, dtype=self.dtype)
        exponent = torch.arange(0, sizes.head_dim, 2, dtype=torch.float64) / sizes.head_dim
        self.frequency = (weights.THETA**-exponent).to(torch.float32)
        self.version = f"torch {torch.__version__}"
        self.weight_bytes = weights.count_linear_bytes(sizes, BITS_PER_WEIGHT[job.format])

    def reset(self, batch: int, length: int) -> None:
        size = (self.sizes.layers, 2, batch, self.sizes.kv_heads, length, self.sizes.head_dim)
        self.cache, self.length = torch.zeros(size, dtype=self.dtype), 0

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        x = self.table[torch.from_numpy(tokens)]  # [B, T, D]
        positions = torch.arange(self.length, self.length + tokens.shape[1])
        self.length += len(positions)
        self.cos, self.sin = self.make_rope_tables(positions)
        self.mask = self.causal_mask(positions)
        for layer in range(self.sizes.layers):
            x = x + self.attend(layer, self.normalize(x))
            x = x + self.mlp(layer, self.normalize(x))
        y = self.products["head", 0](self.normalize(x[:, -1]))  # [B, V]
        logits: np.ndarray = y.to(torch.float32).numpy()
        return logits

    def causal_mask(self, positions: torch.Tensor) -> torch.Tensor | None:
        """[T, S], or None where attention is causal anyway: a whole prompt, or one token."""
        if len(positions) in (1, self.length):
            return None
        return torch.arange(self.length)[None, :] <= positions[:, None]

    def make_rope_tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, Hd]."""
        angle = positions.to(torch.float32)[:, None] * self.frequency
        both = torch.cat([angle, angle], 1)
        return both.cos().to(self.dtype), both.sin().to(self.dtype)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, -1)
        return x * self.cos + torch.cat([-high, low], -1) * self.sin

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (self.sizes.hidden,), self.ones, weights.EPS)

    def attend(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        sizes, (batch, width, _) = self.sizes, x.shape
        qkv = self.products["qkv", layer](x).view(batch, width, -1, sizes.head_dim).transpose(1, 2)
        q, k, v = qkv.split([sizes.heads, sizes.kv_heads, sizes.kv_heads], 1)  # [B, heads, T, Hd]
        keys, values = self.cache[layer, :, :, :, : self.length]
        keys[:, :, -width:], values[:, :, -width:] = self.rotate(k), v
        context = scaled_dot_product_attention(
            self.rotate(q),
            keys,
            values,
            attn_mask=self.mask,
            is_causal=width == self.length,
            enable_gqa=sizes.heads != sizes.kv_heads,
        )
        return self.products["o", layer](context.transpose(1, 2).reshape(batch, width, -1))

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.products["gate_up", layer](x).chunk(2, -1)
        return self.products["down", layer](silu(gate) * up)


def make_products(sizes: ModelSize, form: str) -> Iterator[tuple[tuple[str, int], Product]]:
    """The products of every layer and of the head; linears that read the same input are one."""
    bits, linear_sizes = BITS[form], weights.list_linear_sizes(sizes)
    for name, names in FUSED.items():
        codes = np.concatenate(
            [weights.draw_codes(part, linear_sizes[part], bits) for part in names]
        )
        starts = np.cumsum([0] + [linear_sizes[part][0] for part in names])
        for layer in range(sizes.layers):
            yield (name, layer), PRODUCTS[form](roll_rows(codes, starts, layer))
    head = weights.draw_codes("head", (sizes.vocab, sizes.hidden), bits)
    yield ("head", 0), PRODUCTS[form](head)


def roll_rows(codes: np.ndarray, starts: np.ndarray, layer: int) -> np.ndarray:
    """Each linear's rows rolled by the layer's number, as `weights.make_linears` does."""
    linears = np.split(codes, starts[1:-1])
    return np.concatenate([np.roll(rows, layer, axis=0) for rows in linears])


if __name__ == "__main__":
    serve(Torch)
