"""What the original programs quantize: two linears, and a tiny Llama with outlier channels.

Everything is drawn with NumPy from a seed and rounded so that it stores small: inputs are int8
times a gain for each channel, weights float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

SEED = 11
HIDDEN, INNER, LAYERS, HEADS, VOCABULARY = 64, 128, 2, 4, 128
SAMPLES, LENGTH, HELD_OUT = 32, 64, 8
OUTLIERS = (5, 23, 41)  # channels of the norms' outputs, as trained models have them


@dataclass(frozen=True)
class Layer:
    """A linear: w float16 [N, K]; inputs x = codes int8 [T, K] * gains float32 [K]."""

    w: np.ndarray
    codes: np.ndarray
    gains: np.ndarray

    @property
    def x(self) -> np.ndarray:
        """The inputs, float32 [T, K]."""
        return self.codes.astype(np.float32) * self.gains


def draw_layer(outputs: int, inputs: int, tokens: int) -> Layer:
    """Correlated inputs, one channel in 32 of them 4 to 30 times as large as the others."""
    rng = np.random.default_rng([SEED, outputs, inputs])
    mixed = rng.standard_normal((tokens, inputs)) @ (
        np.eye(inputs) + 0.5 * rng.standard_normal((inputs, inputs)) / inputs**0.5
    )
    codes = np.clip(np.rint(20 * mixed), -127, 127).astype(np.int8)
    gains = np.full(inputs, 0.05, np.float32)
    gains[rng.choice(inputs, inputs // 32, replace=False)] *= np.linspace(4, 30, inputs // 32)
    w = rng.standard_normal((outputs, inputs)) * rng.uniform(0.5, 2, (outputs, 1)) / inputs**0.5
    return Layer(w.astype(np.float16), codes, gains)


def layers() -> dict[str, Layer]:
    """More tokens than channels; and fewer, where only the damping makes the Hessian regular."""
    return {"many_tokens": draw_layer(48, 192, 320), "few_tokens": draw_layer(40, 256, 128)}


def token_ids() -> tuple[np.ndarray, np.ndarray]:
    """Calibration [SAMPLES, LENGTH] and text kept away from it [HELD_OUT, LENGTH], int32."""
    rng = np.random.default_rng([SEED, 1])
    ids = rng.integers(3, VOCABULARY, (SAMPLES + HELD_OUT, LENGTH), dtype=np.int32)
    return ids[:SAMPLES], ids[SAMPLES:]


def write_model(directory: Path) -> None:
    """The tiny Llama: random float16 weights, norms whose outputs have outlier channels."""
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    rng = np.random.default_rng([SEED, 2])
    for name, parameter in model.named_parameters():
        noise = rng.standard_normal(tuple(parameter.shape))
        if parameter.dim() > 1:
            value = noise * (0.3 if "embed" in name else parameter.shape[1] ** -0.5)
        else:
            value = 1 + 0.2 * noise
            value[list(OUTLIERS)] *= 12 if "layers" in name else 1
        parameter.data = torch.from_numpy(value.astype(np.float32))
    model.to(torch.float16).save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One word a token, `0` to `127`; the programs ask for a tokenizer but are given ids."""
    words = {str(index): index for index in range(VOCABULARY)}
    split = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
    split.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=split, unk_token="0", bos_token="1", eos_token="2"
    )


def load_model(directory: Path) -> transformers.LlamaForCausalLM:
    """The model in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()
