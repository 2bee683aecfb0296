"""The graph of a Llama with compressed weights, in the forms that OpenVINO's CPU plugin fuses.

The plugin recognises subgraphs by their structure and runs each as one kernel; the rest of a graph
runs operation by operation, several times slower. So the graph has the structure of converted
Hugging Face models:

    FullyConnected   constant -> Convert -> [Subtract] -> Multiply scale -> [Reshape] -> MatMul
    LLMMLP           gate, up and down of signed INT8: constant -> Convert to f32 -> Multiply by f32
                     scales [N, 1] -> MatMul, with nothing between; gate * Sigmoid(gate) * up
    RMS              x * (1 / Sqrt(ReduceMean(x^2) + eps)) * weight
    RoPE             x * cos + Concat(-x[half:], x[:half]) * sin, over [B, heads, T, Hd]
    attention with   ReadValue -> Gather(beam) -> Concat(new) -> Assign, and the heads repeated by
      its cache      Unsqueeze, Broadcast (bidirectional), Reshape before ScaledDotProductAttention

Where a form differs, the plugin says nothing and is slower: with unsigned codes and a zero point,
with float16 scales, or with Swish as Python's opset makes it, of two inputs, the MLP is three
FullyConnected, and dynamic quantization does nothing on a processor with AMX; with Broadcast in its
default mode attention over repeated heads is a dozen operations. `describe_products` in openvino.py
reads what became of the graph.

INT8 has a scale for each output, INT4 one for each 128 inputs. lm_head reads the last token only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from planish.compare.bench.peers import weights
from planish.compare.bench.sizes import ModelSize

GROUP = 128  # inputs that share an INT4 scale
BITS = {"int4": 4, "int8": 8}
BITS_PER_WEIGHT = {"int4": 4 + 16 / GROUP, "int8": 8.0}

Rows = dict[tuple[str, int], np.ndarray]


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Two codes in a byte, the first in the low nibble."""
    packed: np.ndarray = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed


def keep_int8(codes: np.ndarray) -> np.ndarray:
    """Signed codes as they are."""
    return codes


PACK = {"int4": pack_int4, "int8": keep_int8}


def dequantize_int8(codes: np.ndarray) -> Any:
    """f32(codes) * scale [N, 1], the form of LLMMLP, which takes no other."""
    outputs, inputs = codes.shape
    step = np.full([outputs, 1], weights.scale(inputs, 8), np.float32)
    return op.multiply(op.convert(op.constant(codes), "f32"), op.constant(step))


def dequantize_int4(rows: np.ndarray) -> Any:
    """(codes - 8) * scale of each group, in float16 as compressed models have it, then float32."""
    outputs, inputs = rows.shape[0], rows.shape[1] * 2
    size = [outputs, inputs // GROUP, GROUP]
    codes = op.constant(ov.Tensor(rows, ov.Shape(size), ov.Type.u4), shared_memory=False)
    zero = op.convert(op.constant(np.array([weights.ZERO4], np.uint8)), "f16")
    step = op.constant(np.full([*size[:-1], 1], weights.scale(inputs, 4)))
    scaled = op.multiply(op.subtract(op.convert(codes, "f16"), zero), step)
    whole = op.reshape(scaled, op.constant(np.array([outputs, inputs])), False)
    return op.convert(whole, "f32")


class Graph:
    """Builds the model; holds the inputs that all layers read."""

    def __init__(self, sizes: ModelSize, form: str):
        """form: int4 or int8."""
        self.sizes, self.form = sizes, form
        parts = weights.make_linears(sizes, BITS[form], PACK[form])
        self.rows: Rows = {(part, layer): rows for part, layer, rows in parts}
        self.tokens = op.parameter([-1, -1], np.int64, name="tokens")  # [B, T]
        self.positions = op.parameter([-1, -1], np.int64, name="positions")  # [B, T]
        self.beam = op.parameter([-1], np.int32, name="beam")  # [B]
        self.mask = op.parameter([-1, 1, -1, -1], np.float32, name="mask")  # [B, 1, T, S]
        self.cos, self.sin = self.make_rope_tables()
        self.assigns: list[Any] = []

    def build(self) -> ov.Model:
        """tokens, positions, beam -> logits [B, 1, V]; keys and values are state."""
        table = op.convert(op.constant(weights.make_embedding(self.sizes)), "f32")
        x = op.gather(table, self.tokens, op.constant(0))  # [B, T, D]
        for layer in range(self.sizes.layers):
            x = op.add(x, self.attend(layer, self.normalize(x)))
            x = op.add(x, self.mlp(layer, self.normalize(x)))
        x = op.gather(x, op.constant(np.array([-1])), op.constant(1))  # [B, 1, D]
        logits = self.linear("head", 0, self.normalize(x))
        inputs = [self.tokens, self.positions, self.beam, self.mask]
        return ov.Model([op.result(logits)], self.assigns, inputs, "llama")

    def linear(self, part: str, layer: int, x: Any) -> Any:
        return op.matmul(x, self.weight(self.rows.pop((part, layer))), False, True)

    def weight(self, rows: np.ndarray) -> Any:
        """The dequantized weight, which is never computed: the plugin multiplies the codes."""
        return dequantize_int4(rows) if self.form == "int4" else dequantize_int8(rows)

    def normalize(self, x: Any) -> Any:
        square = op.power(x, op.constant(np.float32(2)))
        mean = op.reduce_mean(square, op.constant(np.array([-1])), True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(weights.EPS))))
        unit = op.multiply(x, op.divide(op.constant(np.float32(1)), root))
        return op.multiply(op.constant(np.ones(self.sizes.hidden, np.float32)), unit)

    def make_rope_tables(self) -> tuple[Any, Any]:
        """cos and sin [B, 1, T, Hd] of position * theta ** (-2i / Hd)."""
        exponent = np.arange(0, self.sizes.head_dim, 2) / self.sizes.head_dim
        frequency = (weights.THETA**-exponent).astype(np.float32)[None, :]  # [1, Hd/2]
        positions = op.unsqueeze(op.convert(self.positions, "f32"), op.constant(2))
        angle = op.matmul(positions, op.constant(frequency), False, False)  # [B, T, Hd/2]
        both = op.unsqueeze(op.concat([angle, angle], 2), op.constant(1))
        return op.cos(both), op.sin(both)

    def rotate(self, x: Any) -> Any:
        half = self.sizes.head_dim // 2
        low, high = self.slice(x, 0, half), self.slice(x, half, 2 * half)
        rotated = op.concat([op.multiply(high, op.constant(np.float32(-1))), low], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(rotated, self.sin))

    def slice(self, x: Any, start: int, stop: int) -> Any:
        """Part of the last of four axes."""
        ends = (op.constant(np.array([value])) for value in (start, stop, 1, 3))
        return op.slice(x, *ends)

    def attend(self, layer: int, x: Any) -> Any:
        sizes = self.sizes
        q = self.rotate(self.split_heads(self.linear("q", layer, x), sizes.heads))
        k = self.rotate(self.split_heads(self.linear("k", layer, x), sizes.kv_heads))
        v = self.split_heads(self.linear("v", layer, x), sizes.kv_heads)
        k, v = self.extend_cache(f"key.{layer}", k), self.extend_cache(f"value.{layer}", v)
        context = op.scaled_dot_product_attention(
            q, self.repeat_heads(k), self.repeat_heads(v), self.mask
        )
        context = op.transpose(context, op.constant(np.array([0, 2, 1, 3])))
        joined = op.reshape(context, op.constant(np.array([0, 0, sizes.hidden])), True)
        return self.linear("o", layer, joined)

    def split_heads(self, x: Any, count: int) -> Any:
        """[B, T, heads * Hd] -> [B, heads, T, Hd]."""
        split = op.reshape(x, op.constant(np.array([0, 0, count, self.sizes.head_dim])), True)
        return op.transpose(split, op.constant(np.array([0, 2, 1, 3])))

    def extend_cache(self, name: str, new: Any) -> Any:
        """Keys or values [B, K, S, Hd] of all tokens so far, the new ones last."""
        size = [-1, self.sizes.kv_heads, -1, self.sizes.head_dim]
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = ov.PartialShape(size), ov.Type.f32, name
        variable = Variable(info)
        batch = op.gather(op.shape_of(self.tokens), op.constant(np.array([0])), op.constant(0))
        tail = op.constant(np.array([self.sizes.kv_heads, 0, self.sizes.head_dim]))
        nothing = op.broadcast(op.constant(np.float32(0)), op.concat([batch, tail], 0))
        past = op.gather(op.read_value(nothing, variable), self.beam, op.constant(0))
        everything = op.concat([past, new], 2)
        self.assigns.append(op.assign(everything, variable))
        return everything

    def repeat_heads(self, x: Any) -> Any:
        """Each key-value head for all query heads that read it: [B, K, S, Hd] -> [B, H, S, Hd]."""
        sizes, shared = self.sizes, self.sizes.heads // self.sizes.kv_heads
        if shared == 1:
            return x
        each = op.unsqueeze(x, op.constant(2))  # [B, K, 1, S, Hd]
        ends = op.shape_of(x)
        front = op.gather(ends, op.constant(np.array([0, 1])), op.constant(0))
        back = op.gather(ends, op.constant(np.array([2, 3])), op.constant(0))
        target = op.concat([front, op.constant(np.array([shared])), back], 0)
        copies = op.broadcast(each, target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(copies, op.constant(np.array([0, sizes.heads, -1, sizes.head_dim])), True)

    def mlp(self, layer: int, x: Any) -> Any:
        gate = self.linear("gate", layer, x)
        gate = op.multiply(gate, op.sigmoid(gate))  # becomes a Swish of one input; op.swish has two
        return self.linear("down", layer, op.multiply(gate, self.linear("up", layer, x)))
