"""Tiny models, written with the safetensors library, and the other things the tests share."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import settings
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from planish.reference.architectures import architecture_of, model_config
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.shapes import (
    block_kinds,
    block_norms,
    block_shapes,
    outer_kinds,
    outer_norms,
    outer_shapes,
)
from planish.reference.model.weights import split_expert

settings.register_profile("planish", deadline=None, database=None, derandomize=True)
settings.load_profile("planish")

VOCABULARY, POSITIONS = 48, 64
BASES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "dtype": "float32",
    },
    "opt": {
        "model_type": "opt",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "word_embed_proj_dim": 32,
        "torch_dtype": "float32",
    },
}


def values_of(kind: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config.json's values; a change to None leaves the key out."""
    merged = {**BASES[kind], **changes}
    return {key: value for key, value in merged.items() if value is not None}


def tensors_of(values: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under the names that the model's architecture has in Hugging Face."""
    path = Path("config.json")
    config, architecture = model_config(values, path), architecture_of(values, path)
    kinds = {architecture.tensor(part).name: kinds for part, kinds in outer_kinds(config).items()}
    outer = outer_shapes(config) | outer_norms(config)
    shapes = {architecture.tensor(part).name: shape for part, shape in outer.items()}
    for layer in range(config.num_layers):
        block = {part: shape for part, (shape, _) in block_shapes(config, layer).items()}
        block |= block_norms(config)
        for part, names in block_kinds(config, layer).items():
            general, expert = split_expert(part)
            prefix = architecture.tensor(general).name.format(i=layer, e=expert)
            kinds[prefix], shapes[prefix] = names, block[part]
    if config.tie_embeddings:
        del kinds[architecture.tensor("head").name]
    rng, tensors = np.random.default_rng(seed), {}
    for prefix, names in kinds.items():
        for kind in names:
            shape = shapes.get(prefix, (config.hidden_size,))
            tensors[f"{prefix}.{kind}"] = _random(rng, prefix, kind, shape)
    return tensors


def _random(rng: Any, prefix: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "bias":
        return (0.2 * rng.standard_normal(shape[:1])).astype(np.float32)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    width = 1.0 if "embed" in prefix else shape[1] ** 0.5
    return (1.5 * rng.standard_normal(shape) / width).astype(np.float32)


def letters_tokenizer() -> tokenizers.Tokenizer:
    """Single letters and a few more, ids 0..29; whitespace separates."""
    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "."]
    inner = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.Fuse()
    return inner


def write(
    path: Path, values: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None
) -> Path:
    """A model directory with config.json, model.safetensors and tokenizer.json."""
    path.mkdir(parents=True, exist_ok=True)
    values = values_of() if values is None else values
    (path / "config.json").write_text(json.dumps(values))
    save_file(tensors_of(values) if tensors is None else tensors, path / "model.safetensors")
    letters_tokenizer().save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The makers of tiny models: values, tensors, write, tokenizer."""
    return SimpleNamespace(
        values=values_of, tensors=tensors_of, write=write, tokenizer=letters_tokenizer
    )


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few models that no test changes, by name."""
    root = tmp_path_factory.mktemp("models")
    variants = {
        "llama": values_of(),
        "llama-tied": values_of(tie_word_embeddings=True, num_key_value_heads=1),
        "opt": values_of("opt"),
        "opt-350m-form": values_of("opt", do_layer_norm_before=False, word_embed_proj_dim=16),
        "opt-gelu": values_of("opt", activation_function="gelu", tie_word_embeddings=False),
    }
    return {name: write(root / name, values) for name, values in variants.items()}


@pytest.fixture(scope="session")
def loaded(directories: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """Name -> (checkpoint, weights) of the same models."""
    opened = {name: open_checkpoint(path) for name, path in directories.items()}
    return {name: (checkpoint, load_weights(checkpoint)) for name, checkpoint in opened.items()}


@pytest.fixture(scope="session")
def samples() -> list[np.ndarray]:
    """Calibration tokens: 4 samples of 24."""
    return list(np.random.default_rng(7).integers(0, VOCABULARY, (4, 24)))
