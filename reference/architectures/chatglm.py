"""ChatGLM2, ChatGLM3 and GLM-4 in the layout of their remote code: GLM's graph, other names.

Source: modeling_chatglm.py in those checkpoints; Zeng et al. 2022, arXiv 2210.02414; GLM team 2024,
arXiv 2406.12793. rope_ratio multiplies the rotary base in ChatGLM3 and GLM-4, and divides positions
in ChatGLM2-6B-32K (https://github.com/ztxz16/fastllm/issues/374). Only _name_or_path distinguishes
their configs.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.keys import Keys, check_heads
from planish.reference.model.config import ModelConfig, repeat_layer
from planish.reference.model.rope import Interpolation, Rope


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(num_layers="num_hidden_layers", padded_vocab_size="vocab_size")
    check_graph(keys)
    hidden, heads = keys.count("hidden_size", 4096), keys.count("num_attention_heads", 32)
    head_dim, kv_heads = keys.count("kv_channels", 128), keys.count("multi_query_group_num", 1)
    check_heads(keys, heads, kv_heads, "multi_query_group_num")
    bias = keys.flag("add_bias_linear", False)
    return ModelConfig(
        model_type="chatglm",
        vocab_size=keys.count("padded_vocab_size", VOCABULARY),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=repeat_layer(keys.count("num_layers", 28), head_dim, rope=0),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=keys.count("ffn_hidden_size", 13696),
        max_positions=keys.count("seq_length", 2048),
        norm="rms_norm",
        norm_eps=keys.number("layernorm_epsilon", 1e-5),
        ropes=(rope(keys, head_dim),),
        activation="silu",
        gated_mlp=True,
        qkv_bias=bias or keys.flag("add_qkv_bias", False),
        o_bias=bias,
        mlp_bias=bias,
        tie_embeddings=False,
        bos_token_id=keys.token_id("bos_token_id"),
        eos_token_ids=keys.token_ids("eos_token_id"),
    )


def check_graph(keys: Keys) -> None:
    """Refuse graphs that no published checkpoint of this layout has and the transformer lacks."""
    for flag, default in (("rmsnorm", True), ("post_layer_norm", True)):
        keys.only(flag, True, default)
    keys.only("multi_query_attention", True, False)  # otherwise the fused rows are in another order
    for flag in ("apply_residual_connection_post_layernorm", "tie_word_embeddings"):
        keys.only(flag, False, False)
    keys.only("quantization_bit", 0, 0)
    keys.only("pre_seq_len", None)


def rope(keys: Keys, head_dim: int) -> Rope:
    """Neighbours in the first half of a head are rotated; rope_theta defaults to 10000."""
    if head_dim % 4:
        raise keys.fail("kv_channels", "a multiple of 4, as half a head is rotated", head_dim)
    theta, ratio = keys.number("rope_theta", 10000.0), keys.number("rope_ratio", 1.0)
    if ratio != 1 and divides_positions(keys):
        scaling = Interpolation(factor=ratio)
        return Rope(theta=theta, dim=head_dim // 2, interleaved=True, scaling=scaling)
    return Rope(theta=theta * ratio, dim=head_dim // 2, interleaved=True)


def divides_positions(keys: Keys) -> bool:
    """Whether rope_ratio divides positions, as in ChatGLM2; ConfigError if that is ambiguous.

    The vocabulary of GLM-4 differs from that of ChatGLM2 and ChatGLM3.
    """
    name = str(keys.get("_name_or_path") or "").lower()
    if "chatglm2" in name:
        return True
    if "chatglm3" not in name and keys.count("padded_vocab_size", VOCABULARY) == VOCABULARY:
        expected = "a name with chatglm2 (rope_ratio divides positions) or chatglm3 (scales theta)"
        raise keys.fail("_name_or_path", expected, repr(keys.get("_name_or_path")))
    return False


VOCABULARY = 65024  # of ChatGLM2 and ChatGLM3
LAYER = "transformer.encoder.layers.{i}."
QKV = Tensor(LAYER + "self_attention.query_key_value", fused=True)
GATE_UP = Tensor(LAYER + "mlp.dense_h_to_4h", fused=True)

CHATGLM = Architecture(
    model_type="chatglm",
    config=config,
    tensors={
        "embed": "transformer.embedding.word_embeddings",
        "final_norm": "transformer.encoder.final_layernorm",
        "head": "transformer.output_layer",
    },
    block={
        "attention_norm": LAYER + "input_layernorm",
        "q": QKV,
        "k": QKV,
        "v": QKV,
        "o": LAYER + "self_attention.dense",
        "mlp_norm": LAYER + "post_attention_layernorm",
        "gate": GATE_UP,
        "up": GATE_UP,
        "down": LAYER + "mlp.dense_4h_to_h",
    },
    examples=("zai-org/chatglm2-6b", "zai-org/chatglm3-6b", "zai-org/glm-4-9b"),
    ignored=(r"transformer\.rotary_pos_emb\.inv_freq",),
)
