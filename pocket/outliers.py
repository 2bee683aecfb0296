"""Outlier channels for a small model: the same function, the activations of a large one.

From about 6.7 billion parameters on, a few channels of the residual stream are 20 to 100 times
as large as the rest, the same channels in every layer and for every token (Dettmers et al. 2022,
LLM.int8(), section 4; SmoothQuant, section 3). Small models have none, which is why naive W8A8
does not hurt them. Here they get some without changing what they compute: for a norm and the
linears that read its output, and a factor f_j of channel j,

    norm.weight[j] *= f_j        W[:, j] /= f_j        (norm(x) f) (W / f)t = norm(x) Wt

The factors are powers of two, so every product is exact in bfloat16 too and only the order of
the linears' sums could move a logit by an ulp. It is smoothing backwards, and smoothing undoes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (lets safetensors hand out bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file

NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
CHANNELS, LARGEST = 6, 64  # how many channels, and the median factor by which they stand out


def outlier_factors(width: int, channels: int, largest: int, seed: int) -> np.ndarray:
    """1 for most channels; for a few, fixed ones a power of two around `largest`. float32 [width]."""
    rng = np.random.default_rng(seed)
    factors = np.ones(width, np.float32)
    chosen = rng.choice(width, channels, replace=False)
    factors[chosen] = largest * 2.0 ** rng.integers(-1, 1, channels)
    factors[chosen[0]] = largest
    return factors


def add_outliers(
    tensors: Mapping[str, np.ndarray],
    num_layers: int,
    seed: int = 0,
    channels: int = CHANNELS,
    largest: int = LARGEST,
) -> dict[str, np.ndarray]:
    """Tensors of a Hugging Face Llama with outlier channels in what every norm of a block gives out."""
    changed = dict(tensors)
    width = len(tensors["model.layers.0.input_layernorm.weight"])
    factors = outlier_factors(width, channels, largest, seed)
    for layer in range(num_layers):
        for norm, readers in NORMS.items():
            prefix = f"model.layers.{layer}."
            weight = changed[f"{prefix}{norm}.weight"]
            changed[f"{prefix}{norm}.weight"] = weight * factors.astype(weight.dtype)
            for reader in readers:
                matrix = changed[f"{prefix}{reader}.weight"]
                changed[f"{prefix}{reader}.weight"] = matrix / factors.astype(matrix.dtype)
    return changed


def write_outlier_model(source: Path, target: Path) -> None:
    """A copy of a model directory with outlier channels; a target that exists is replaced."""
    hidden = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.copytree(source, hidden)
    tensors = load_file(source / "model.safetensors")
    layers = sum(name.endswith("input_layernorm.weight") for name in tensors)
    save_file(add_outliers(tensors, layers), hidden / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(target, ignore_errors=True)
    hidden.rename(target)
