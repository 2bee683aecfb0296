"""Make the goldens: python tests/golden/make.py [NAME ...]   (needs planish[oracle])

Each is a tiny model with random weights, saved by transformers, and the logits that transformers
computes from what was saved, in float32. The tests compare both engines with them and need
neither torch nor transformers. To add an architecture, add a row to VARIANTS.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCABULARY, POSITIONS = 256, 512
LONG_POSITIONS = (0, 1, 2, 249, 498, 499)


@dataclass(frozen=True)
class Variant:
    """A config, the type its weights are saved in, and what is done to the directory afterwards."""

    config: Callable[[], transformers.PretrainedConfig]
    dtype: torch.dtype = torch.float32
    shards: bool = False
    edit: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def llama(**changes: Any) -> Callable[[], transformers.PretrainedConfig]:
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    }
    return lambda: transformers.LlamaConfig(**{**base, **changes})


def opt(**changes: Any) -> Callable[[], transformers.PretrainedConfig]:
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "word_embed_proj_dim": 48,
    }
    return lambda: transformers.OPTConfig(**{**base, **changes})


def old_spelling(values: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    rope = values.pop("rope_parameters")
    values["rope_theta"], values["rope_scaling"] = rope["rope_theta"], None
    values["torch_dtype"] = values.pop("dtype")
    return values


VARIANTS = {
    "llama-tied-grouped": Variant(llama()),
    "llama-untied-wide-heads": Variant(
        llama(
            tie_word_embeddings=False,
            num_key_value_heads=4,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        )
    ),
    "llama-multi-query-bfloat16-shards": Variant(
        llama(num_key_value_heads=1, rms_norm_eps=1e-6), torch.bfloat16, shards=True
    ),
    "llama-old-spelling": Variant(
        llama(rope_parameters={"rope_type": "default", "rope_theta": 100000.0}), edit=old_spelling
    ),
    "llama-biases-float16": Variant(llama(attention_bias=True, mlp_bias=True), torch.float16),
    "opt-pre-norm": Variant(opt()),
    "opt-350m-form": Variant(opt(do_layer_norm_before=False, word_embed_proj_dim=32)),
    "opt-no-bias-no-affine": Variant(opt(enable_bias=False, layer_norm_elementwise_affine=False)),
    "opt-untied-gelu-no-final-norm": Variant(
        opt(tie_word_embeddings=False, activation_function="gelu", _remove_final_layer_norm=True)
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that attention is uneven and every flag shows; norms and biases random too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = centre + 0.3 * noise
        elif "embed" in name:
            parameter.data = noise
        else:
            parameter.data = 1.5 * noise / parameter.shape[1] ** 0.5


def save(variant: Variant, model: Any, directory: Path) -> None:
    """The directory as transformers writes it, small shards where wanted, config edited last."""
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    size = "40KB" if variant.shards else "5GB"
    model.to(variant.dtype).save_pretrained(directory, max_shard_size=size)
    if variant.edit is not None:
        file = directory / "config.json"
        values = variant.edit(json.loads(file.read_text()))
        file.write_text(json.dumps(values, indent=2) + "\n")


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens[None].astype(np.int64))).logits[0].float().numpy()


def make(name: str, variant: Variant) -> None:
    directory, config = HERE / name, variant.config()
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, seed=len(name))
    save(variant, model, directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = np.random.default_rng(0)
    short, long = rng.integers(3, VOCABULARY, 3), rng.integers(3, VOCABULARY, 500)
    batch = [rng.integers(3, VOCABULARY, n) for n in (3, 17, 9)]
    stored = {
        "tokens_short": short,
        "logits_short": logits_of(model, short),
        "tokens_long": long,
        "positions_long": np.array(LONG_POSITIONS),
        "logits_long": logits_of(model, long)[list(LONG_POSITIONS)],
    }
    for index, tokens in enumerate(batch):
        stored[f"batch_tokens_{index}"] = tokens
        stored[f"batch_logits_{index}"] = logits_of(model, tokens)[-1]
    stored = {k: v.astype(np.int32) if v.dtype.kind == "i" else v for k, v in stored.items()}
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(directory / "golden.npz", made_by=made_by, **stored)
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, logits up to {np.abs(stored['logits_long']).max():.2f}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or VARIANTS:
        make(chosen, VARIANTS[chosen])
