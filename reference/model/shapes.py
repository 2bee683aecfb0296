"""The shape of every tensor of a model, derived from the config alone."""

from __future__ import annotations

from planish.reference.model.config import LayerKind, ModelConfig

Shape = tuple[int, ...]
Linears = dict[str, tuple[Shape, bool]]  # name -> shape [N, K] and whether it has a bias


def outer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the weights outside the blocks, norms excepted, by name."""
    width, narrow = config.hidden_size, config.embedding_size
    shapes: dict[str, Shape] = {
        "embed": (config.vocab_size, narrow),
        "head": (config.vocab_size, narrow),
    }
    if config.position_offset is not None:
        shapes["positions"] = (config.max_positions + config.position_offset, width)
    if config.projects:
        shapes |= {"project_in": (width, narrow), "project_out": (narrow, width)}
    return shapes


def outer_norms(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the norms outside the blocks, by name."""
    has = {"embed_norm": config.embed_norm, "final_norm": config.final_norm}
    return {name: (config.hidden_size,) for name, present in has.items() if present}


def outer_kinds(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The tensors (weight, bias) of each module outside the blocks, by the module's name."""
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(outer_shapes(config), ("weight",))
    if config.head_bias:
        kinds["head"] = ("weight", "bias")
    return kinds | {name: norm_kinds(config, name) for name in outer_norms(config)}


def block_norms(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the norms that a block has, by name."""
    width, queries, keys = config.hidden_size, config.num_heads, config.num_kv_heads
    before = config.norms_before or config.norm_placement == "post"
    shapes: dict[str, Shape] = {"attention_norm": (width,)} if before else {}
    if before and not config.shared_norm:
        shapes["mlp_norm"] = (width,)
    if config.norms_output:
        shapes |= {"attention_output_norm": (width,), "mlp_output_norm": (width,)}
    head: dict[str | None, tuple[Shape, Shape]] = {
        "head": ((config.head_dim,), (config.head_dim,)),
        "each_head": ((queries, config.head_dim), (keys, config.head_dim)),
        "width": ((queries * config.head_dim,), (keys * config.head_dim,)),
    }
    if config.qk_norm is not None:
        shapes["q_norm"], shapes["k_norm"] = head[config.qk_norm]
    return shapes


def block_kinds(config: ModelConfig, layer: int) -> dict[str, tuple[str, ...]]:
    """The tensors (weight, bias) of each module of a block, by the module's name."""
    norms = {name: norm_kinds(config, name) for name in block_norms(config)}
    linears = block_shapes(config, layer).items()
    return norms | {name: ("weight", "bias")[: 1 + bias] for name, (_, bias) in linears}


def norm_kinds(config: ModelConfig, name: str) -> tuple[str, ...]:
    """The tensors of a norm: none if not affine; an RMSNorm and the q and k norms have no bias."""
    if not config.norm_affine:
        return ()
    has_bias = config.norm == "layer_norm" and config.norm_bias and name not in ("q_norm", "k_norm")
    return ("weight", "bias") if has_bias else ("weight",)


def block_shapes(config: ModelConfig, layer: int) -> Linears:
    """Shape [N, K] of a block's linears and whether each has a bias, in execution order."""
    width = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Linears = {
        "q": ((queries, width), config.qkv_bias),
        "k": ((keys, width), config.qkv_bias),
        "v": ((keys, width), config.qkv_bias),
        "o": ((width, queries), config.o_bias),
    }
    return shapes | mlp_shapes(config, config.layers[layer])


def mlp_shapes(config: ModelConfig, kind: LayerKind) -> Linears:
    """The linears of a dense MLP or of a mixture of experts."""
    if not kind.experts or config.moe is None:
        return one_mlp_shapes(config, config.intermediate_size)
    expert = one_mlp_shapes(config, config.moe.intermediate_size)
    shapes: Linears = {"router": ((config.moe.num_experts, config.hidden_size), False)}
    for index in range(config.moe.num_experts):
        shapes |= {f"experts.{index}.{name}": shape for name, shape in expert.items()}
    return shapes


def one_mlp_shapes(config: ModelConfig, inner: int) -> Linears:
    """The linears of one MLP of `inner` channels; `gate` only if the MLP is gated."""
    width, bias = config.hidden_size, config.mlp_bias
    shapes: Linears = {
        "gate": ((inner, width), bias),
        "up": ((inner, width), bias),
        "down": ((width, inner), bias),
    }
    return shapes if config.gated_mlp else {k: v for k, v in shapes.items() if k != "gate"}
