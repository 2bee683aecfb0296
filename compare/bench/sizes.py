"""The shapes at which speed is compared: public Llama sizes, and mixtures of experts cut down to
fit a small machine, to be filled with random weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model by its sizes, a Llama unless it says otherwise.

    With experts each layer has so many MLPs of width ffn, and a token goes through top_k of them.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    experts: int = 0
    top_k: int = 0
    head_width: int | None = None  # hidden / heads unless told
    model_type: str = "llama"
    model_class: str = "LlamaForCausalLM"  # as transformers calls it

    @property
    def head_dim(self) -> int:
        return self.head_width or self.hidden // self.heads

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
        Shape(
            "mixtral",
            *(2048, 8, 16, 4, 7168, 32000),
            experts=8,
            top_k=2,
            model_type="mixtral",
            model_class="MixtralForCausalLM",
        ),
        Shape(
            "qwen3_moe",
            *(2048, 8, 32, 4, 768, 32000),
            experts=128,
            top_k=8,
            head_width=128,
            model_type="qwen3_moe",
            model_class="Qwen3MoeForCausalLM",
        ),
    )
}
