"""The sizes of model at which speed is compared: public Llama sizes, and mixtures of experts with
fewer layers so that they fit a small machine. All are filled with random weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The dimensions of a model, a Llama unless model_type says otherwise.

    With experts each layer has `experts` MLPs of width ffn, and a token is routed to top_k of them.
    """

    name: str
    hidden: int  # D
    layers: int
    heads: int  # H
    kv_heads: int
    ffn: int
    vocab: int
    experts: int = 0
    top_k: int = 0
    head_width: int | None = None  # hidden / heads if None
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


def llama_size(name: str, hidden: int, layers: int, heads: tuple[int, int], ffn: int) -> ModelSize:
    """A Llama with 32,000 tokens. heads: of queries, of keys and values."""
    return ModelSize(
        name=name,
        hidden=hidden,
        layers=layers,
        heads=heads[0],
        kv_heads=heads[1],
        ffn=ffn,
        vocab=32000,
    )


MODEL_SIZES = {
    size.name: size
    for size in (
        llama_size("110M", 768, 12, (12, 12), 2048),
        llama_size("1.1B", 2048, 22, (32, 4), 5632),
        llama_size("7B", 4096, 32, (32, 32), 11008),
        ModelSize(
            name="mixtral",
            hidden=2048,
            layers=8,
            heads=16,
            kv_heads=4,
            ffn=7168,
            vocab=32000,
            experts=8,
            top_k=2,
            model_type="mixtral",
            model_class="MixtralForCausalLM",
        ),
        ModelSize(
            name="qwen3_moe",
            hidden=2048,
            layers=8,
            heads=32,
            kv_heads=4,
            ffn=768,
            vocab=32000,
            experts=128,
            top_k=8,
            head_width=128,
            model_type="qwen3_moe",
            model_class="Qwen3MoeForCausalLM",
        ),
    )
}
