"""Checkpoints in layouts of which no sample exists, written code by code as their owners pack them.

Each writer makes a model of one layer under Hugging Face's names and returns the weights that its
owner means, in float32, by the prefix of the linear. Nothing here uses planish's own packing.
"""

import json
import math

import ml_dtypes
import numpy as np

from planish.reference.files.safetensors import write_tensors

HIDDEN, INNER, KEYS, WORDS = 128, 192, 64, 32
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "vocab_size": WORDS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}


def write_awq_gemv(path, group_size=64):
    """AutoAWQ's WQLinear_GEMV: rows of words along K, scales and zero points padded to whole words.

    The width of the padding is calculate_zeros_width of awq/utils/packing_utils.py.
    """

    def make(rng, rows, cols):
        codes, zeros, scales = draw_groups(rng, rows, cols, group_size)
        groups = cols // group_size
        at_once = {32: 4, 64: 2}.get(group_size, 1)
        width = math.ceil(math.ceil(groups / 8) / at_once) * at_once
        padded = np.zeros((rows, 8 * width), np.float16)
        padded[:, :groups] = scales
        fields = np.zeros((rows, 8 * width), np.int64)
        fields[:, :groups] = zeros
        tensors = {"qweight": words_of(codes), "qzeros": words_of(fields), "scales": padded}
        return tensors, grouped_weights(codes, zeros, scales, group_size)

    said = {"quant_method": "awq", "version": "gemv", "bits": 4, "zero_point": True}
    return write_model(path, make, said | {"group_size": group_size})


def write_incs_export(path, group_size=32):
    """Neural Compressor's "huggingface" export: GPTQ v1 without g_idx, with biases of zeros.

    A true zero point of 0 is stored as 15, and its neighbours are untouched.
    """

    def make(rng, rows, cols):
        codes, zeros, scales = draw_groups(rng, rows, cols, group_size)
        stored = (zeros - 1) % 16
        tensors = {
            "qweight": words_of(codes).T,  # [K / 8, N]
            "qzeros": words_of(stored.T),  # [G, N / 8]
            "scales": scales.T,
            "bias": np.zeros(rows, np.float16),
            "scale_bf16_to_fp8": np.ones(1, ml_dtypes.bfloat16),
        }
        return tensors, grouped_weights(codes, zeros, scales, group_size)

    said = {"quant_method": "gptq", "bits": 4, "sym": False, "desc_act": False}
    return write_model(path, make, said | {"group_size": group_size})


def write_autoround_mixed(path, given, packing="auto_round:auto_gptq"):
    """AutoRound's layout of GPTQ, version 1, symmetric of 4 bits in groups of 32; `given` has other
    bits, group sizes or sym for some linears, by their part. Of 16 bits are plain float16 weights.
    """
    parts, usual = iter(LINEARS), {"bits": 4, "group_size": 32, "sym": True}

    def make(rng, rows, cols):
        one = usual | given.get(next(parts), {})
        bits, size = one["bits"], one["group_size"]
        if bits == 16:
            weight = rng.standard_normal((rows, cols)).astype(np.float16)
            return {"weight": weight}, weight.astype(np.float32)
        groups = rows, cols // size
        codes = rng.integers(0, 2**bits, (rows, cols))
        zeros = rng.integers(1, 2**bits, groups)
        zeros = np.full(groups, 2**bits // 2) if one["sym"] else zeros
        scales = (rng.uniform(0.001, 0.01, groups) * rng.choice([-1, 1], groups)).astype(np.float16)
        tensors = {
            "qweight": words_of(codes, bits).T,  # [K b / 32, N]
            "qzeros": words_of((zeros - 1).T, bits),  # [G, N b / 32]
            "scales": scales.T,
        }
        return tensors, grouped_weights(codes, zeros, scales, size)

    said = {"quant_method": "auto-round", "packing_format": packing, "data_type": "int"} | usual
    extra = {f"model.layers.0.{part}": usual | one for part, one in given.items()}
    return write_model(path, make, said | {"extra_config": extra})


def write_bitsandbytes(path):
    """LLM.int8(): codes and the absolute maximum of each row."""

    def make(rng, rows, cols):
        codes = rng.integers(-127, 128, (rows, cols))
        largest = rng.uniform(0.01, 2, rows).astype(np.float32)
        tensors = {
            "weight": codes.astype(np.int8),
            "SCB": largest,
            "weight_format": np.array(0, np.uint8),
        }
        return tensors, codes.astype(np.float32) * (largest / np.float32(127))[:, None]

    return write_model(path, make, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def write_deepseek(path, dtype=np.float32):
    """FP8 with a scale for each block of 128 x 128; the blocks at the edges are cut."""

    def make(rng, rows, cols):
        numbers = rng.integers(0, 256, (rows, cols)).astype(np.uint8)
        numbers[numbers & 127 == 127] = 0  # the two NaNs
        weight = numbers.view(ml_dtypes.float8_e4m3fn)
        blocks = -(-rows // 128), -(-cols // 128)
        scale = rng.uniform(1e-4, 1e-2, blocks).astype(dtype)
        wide = np.array(
            [[float(scale[n // 128, k // 128]) for k in range(cols)] for n in range(rows)]
        )
        tensors = {"weight": weight, "weight_scale_inv": scale}
        return tensors, weight.astype(np.float32) * wide.astype(np.float32)

    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return write_model(path, make, said | {"weight_block_size": [128, 128]})


def write_model(path, make, quantization):
    """Linears by `make`, the rest in float32; returns the weights by prefix."""
    rng = np.random.default_rng(5)
    path.mkdir()
    weights = {}
    tensors = {"model.embed_tokens.weight": rng.standard_normal((WORDS, HIDDEN), np.float32)}
    norms = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")
    tensors |= {f"model.{norm}.weight": np.ones(HIDDEN, np.float32) for norm in norms}
    for part, (rows, cols) in LINEARS.items():
        prefix = f"model.layers.0.{part}"
        made, weights[prefix] = make(rng, rows, cols)
        tensors |= {f"{prefix}.{kind}": tensor for kind, tensor in made.items()}
    write_tensors(path / "model.safetensors", tensors, padded=False)
    values = CONFIG | {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(values))
    return weights


def draw_groups(rng, rows, cols, group_size):
    """Codes 0..15 [N, K], zero points 0..15 and scales float16 [N, G]."""
    groups = rows, cols // group_size
    zeros = rng.integers(0, 16, groups)
    zeros[0, 0] = 0
    scales = rng.uniform(0.001, 0.01, groups).astype(np.float16)
    return rng.integers(0, 16, (rows, cols)), zeros, scales


def grouped_weights(codes, zeros, scales, group_size):
    """scale * (q - z), entry by entry."""
    weights = np.empty(codes.shape, np.float32)
    for n, k in np.ndindex(codes.shape):
        g = k // group_size
        weights[n, k] = np.float32(scales[n, g]) * np.float32(codes[n, k] - zeros[n, g])
    return weights


def words_of(fields, bits=4):
    """Fields [R, C] of some bits as int32 words [R, C bits / 32], the first in the lowest bits."""
    (rows, cols), each = fields.shape, 32 // bits
    words = np.zeros((rows, cols // each), np.uint32)
    for place in range(each):
        words |= fields[:, place::each].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)
