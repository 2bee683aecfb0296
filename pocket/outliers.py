"""Outlier channels for a small model: the same function, the activations of a large one.

From about 6.7 billion parameters on, a few channels of what the norms give out are 20 to 100 times
as large as the others: the same channels in every layer, for every token (Dettmers et al. 2022,
LLM.int8(), section 4; Xiao et al. 2022, SmoothQuant, section 3). One INT8 scale per token then
leaves the other channels a handful of levels. Small models have no such channels, which is why
naive W8A8 does not hurt them. Here they get some without changing what they compute: for a norm,
the linears that read it, and a factor f_j of channel j,

    norm.weight[j] *= f_j        W[:, j] /= f_j        (norm(x) f) (W / f)t = norm(x) Wt
    f_j = 2 ** rint(log2(magnitude * median |norm.weight| / |norm.weight[j]|))

It is SmoothQuant's migration backwards, and smoothing undoes it. Powers of two, because then every
product is exact, in bfloat16 too: the logits keep their bits as long as the sums keep their order.
The price: a channel lands within sqrt(2) of `magnitude` and not on it. And what is aimed at is the
norm's weight, so the activations, which have a spread of their own, land less closely. What it
does not imitate: a large model's outliers keep their sign and size from token to token, these vary
as the channel always did.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (lets safetensors hand out bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file

from planish.reference.files.placing import hidden_beside, put_directory

READERS = {  # norm of a block -> the linears that read what it gives out
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
CHANNELS, MAGNITUDE = 24, 80.0
SMALLEST = 1 / 16  # of the median: a norm weight below it is treated as this large


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
    """A Hugging Face Llama's tensors, the same `channels` outstanding in every norm of a block.

    `magnitude` is how many times the median they are to be. Types and the order of names are kept;
    a name that a Llama has and `tensors` lacks is a KeyError.
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
    """A copy of the one-file model directory `source` with outlier channels, in its own type.

    A model directory that is at `target` is replaced; anything else there is a FileExistsError.
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
