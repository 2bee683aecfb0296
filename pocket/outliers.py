"""Give a small model the outlier channels of a large one, without changing its function.

From about 6.7 billion parameters on, a few channels of the norms' outputs are 20 to 100 times as
large as the others: the same channels in every layer, for every token (LLM.int8(), arXiv
2208.07339, section 4; SmoothQuant, arXiv 2211.10438, section 3). One INT8 scale per token then
leaves only a few levels for the other channels. Small models have no such channels, so naive W8A8
does not hurt them. Here we add some: for a norm, the linears that read it, and a factor f_j of
channel j,

    norm.weight[j] *= f_j        W[:, j] /= f_j        (norm(x) f) (W / f)t = norm(x) Wt
    f_j = 2 ** rint(log2(magnitude * median |norm.weight| / |norm.weight[j]|))

This is SmoothQuant's migration in reverse, and smoothing undoes it. With powers of two every
product is exact, also in bfloat16: the logits stay equal to the bit as long as sums keep their
order. The price is that a channel ends up within a factor of sqrt(2) of `magnitude`. The factor is
chosen for the norm's weight, so activations, which have their own spread, differ more. One
difference remains: a large model's outliers keep their sign and size from token to token, these
vary as before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (lets safetensors hand out bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file

from planish.reference.files.placing import hidden_beside, put_directory

READERS = {  # norm of a block -> the linears that read its output
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
CHANNELS, MAGNITUDE = 24, 80.0
SMALLEST = 1 / 16  # of the median; smaller norm weights count as this large


def outlier_factors(weight: np.ndarray, chosen: np.ndarray, magnitude: float) -> np.ndarray:
    """f of the equation above for the `chosen` channels, 1 for the others. float32 [width]."""
    size = np.abs(weight.astype(np.float32))
    middle = np.median(size)
    size = np.maximum(size[chosen], middle * SMALLEST)
    factors = np.ones(len(weight), np.float32)
    factors[chosen] = np.exp2(np.rint(np.log2(magnitude * middle / size)))
    return factors


def add_outliers(
    tensors: Mapping[str, np.ndarray],
    num_layers: int,
    seed: int = 0,
    channels: int = CHANNELS,
    magnitude: float = MAGNITUDE,
) -> dict[str, np.ndarray]:
    """A Hugging Face Llama's tensors, with the same `channels` outlier channels in all its blocks.

    magnitude: their size relative to the median. Types and the order of names do not change; raises
    KeyError if a Llama's tensor is missing.
    """
    changed = dict(tensors)
    width = len(tensors["model.layers.0.input_layernorm.weight"])
    chosen = np.random.default_rng(seed).choice(width, channels, replace=False)
    for layer in range(num_layers):
        for norm, readers in READERS.items():
            name = f"model.layers.{layer}.{norm}.weight"
            weight = changed[name]
            factors = outlier_factors(weight, chosen, magnitude).astype(weight.dtype)
            changed[name] = weight * factors
            for reader in readers:
                name = f"model.layers.{layer}.{reader}.weight"
                changed[name] = changed[name] / factors.astype(changed[name].dtype)
    return changed


def write_outlier_model(source: Path, target: Path) -> None:
    """Copy the one-file model directory `source`, with outlier channels added, types unchanged.

    Replaces a model directory at `target`; raises FileExistsError for anything else there.
    """
    if target.exists() and not (target / "config.json").is_file():
        raise FileExistsError(f"{target}: exists and is not a model directory; not replaced")
    hidden = hidden_beside(target)
    try:
        shutil.copytree(source, hidden)
        tensors = load_file(source / "model.safetensors")
        layers = sum(name.endswith("input_layernorm.weight") for name in tensors)
        changed = add_outliers(tensors, layers)
        save_file(changed, hidden / "model.safetensors", metadata={"format": "pt"})
        put_directory(hidden, target, overwrite=True)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
