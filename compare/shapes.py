"""The shapes at which speed is compared: public Llama sizes, to be filled with random weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def weights_per_layer(self) -> int:
        """Weights of one layer's linears."""
        kv = self.kv_heads * self.head_dim
        return self.hidden * (2 * self.hidden + 2 * kv + 3 * self.ffn)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("110M", 768, 12, 12, 12, 2048, 32000),
        Shape("1.1B", 2048, 22, 32, 4, 5632, 32000),
        Shape("7B", 4096, 32, 32, 32, 11008, 32000),
    )
}
