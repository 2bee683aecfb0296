"""Make the goldens: python tests/golden/make.py [NAME ...]   (needs planish[oracle])

Each is a tiny model with random weights, saved by transformers, and the logits that transformers
computes from what was saved, in float32. The tests compare both engines with them and need
neither torch nor transformers. To add an architecture, add a row to VARIANTS.

Variants of one shape share their weights, because all draw from the same SEED: two directories
that differ only in spelling must give equal logits.
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
SEED = 0
VOCABULARY, POSITIONS = 256, 512
LONG_POSITIONS = [0, 1, 2, 249, 498, 499]
BATCH_LENGTHS = (3, 17, 9)


@dataclass(frozen=True)
class Variant:
    """A config, how its weights are drawn and saved, and what is done to config.json afterwards."""

    config: Callable[[], transformers.PretrainedConfig]
    dtype: torch.dtype = torch.float32
    embed_scale: float = 1.0  # 0.02, as in trained models, lets the norms' epsilon show
    shards: bool = False
    without_head: bool = False  # saved from the base model: no head, one prefix fewer
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


def theta(value: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": value}


def old_llama(values: dict[str, Any]) -> dict[str, Any]:
    """config.json in transformers 4's spelling, without the keys that came later."""
    later = ("head_dim", "attention_bias", "mlp_bias", "transformers_version")
    rope = values.pop("rope_parameters")
    values["rope_theta"], values["rope_scaling"] = rope["rope_theta"], None
    values["torch_dtype"] = values.pop("dtype")
    return {k: v for k, v in values.items() if k not in later}


def old_opt(values: dict[str, Any]) -> dict[str, Any]:
    """config.json without the keys that came after the first OPT checkpoints."""
    later = ("enable_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm")
    values["torch_dtype"] = values.pop("dtype")
    values["architectures"] = ["OPTForCausalLM"]
    dropped = (*later, "tie_word_embeddings", "transformers_version")
    return {k: v for k, v in values.items() if k not in dropped}


VARIANTS = {
    "llama-tied-grouped": Variant(llama(rope_parameters=theta(1e5))),
    "llama-old-spelling": Variant(llama(rope_parameters=theta(1e5)), edit=old_llama),
    "llama-untied-wide-heads": Variant(
        llama(
            tie_word_embeddings=False,
            num_key_value_heads=4,
            head_dim=16,
            rope_parameters=theta(5e5),
        ),
        embed_scale=0.02,
    ),
    "llama-multi-query-bfloat16-shards": Variant(
        llama(num_key_value_heads=1, rms_norm_eps=1e-6), torch.bfloat16, shards=True
    ),
    "llama-biases-float16": Variant(
        llama(
            attention_bias=True,
            mlp_bias=True,
            rms_norm_eps=1e-2,
            rope_parameters=theta(2e3),
        ),
        torch.float16,
    ),
    "opt-pre-norm": Variant(opt()),
    "opt-350m-form": Variant(opt(do_layer_norm_before=False, word_embed_proj_dim=32)),
    "opt-350m-decoder-prefix": Variant(
        opt(do_layer_norm_before=False, word_embed_proj_dim=32), without_head=True, edit=old_opt
    ),
    "opt-no-bias-no-affine": Variant(opt(enable_bias=False, layer_norm_elementwise_affine=False)),
    "opt-untied-gelu-no-final-norm": Variant(
        opt(tie_word_embeddings=False, activation_function="gelu", _remove_final_layer_norm=True),
        embed_scale=0.02,
    ),
}


def randomize(model: torch.nn.Module, embed_scale: float) -> None:
    """Weights large enough that attention is uneven; norms and biases neither 1 nor 0."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():  # a tied weight comes once
        module = model.get_submodule(name.rpartition(".")[0])
        noise = torch.randn(parameter.shape, generator=generator)
        if isinstance(module, torch.nn.Embedding):
            parameter.data = embed_scale * noise
        elif parameter.dim() > 1:
            parameter.data = 1.5 * noise / parameter.shape[-1] ** 0.5
        else:
            is_gain = "Norm" in type(module).__name__ and name.endswith("weight")
            parameter.data = (1.0 if is_gain else 0.0) + 0.3 * noise


def save(variant: Variant, model: Any, directory: Path) -> None:
    """The directory as transformers writes it, small shards where wanted, config edited last."""
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    part = model.base_model if variant.without_head else model
    part.to(variant.dtype).save_pretrained(
        directory, max_shard_size="40KB" if variant.shards else "5GB"
    )
    if variant.edit is not None:
        file = directory / "config.json"
        values = variant.edit(json.loads(file.read_text()))
        file.write_text(json.dumps(values, indent=2) + "\n")


def load(directory: Path) -> Any:
    """The saved model in float32; a tensor that transformers would make up is an error."""
    model, problems = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    if any(problems.values()):
        raise ValueError(f"{directory}: not everything saved was loaded: {problems}")
    return model.eval()


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def record(model: Any) -> dict[str, Any]:
    """Tokens (int32) and logits (float32): a short prompt, a long one, and a batch's last rows."""
    rng = np.random.default_rng(SEED)
    short, long, *batch = (
        rng.integers(3, VOCABULARY, length, dtype=np.int32) for length in (3, 500, *BATCH_LENGTHS)
    )
    stored = {
        "made_by": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "tokens_short": short,
        "logits_short": logits_of(model, short),
        "tokens_long": long,
        "positions_long": np.array(LONG_POSITIONS, np.int32),
        "logits_long": logits_of(model, long)[LONG_POSITIONS],
    }
    for index, tokens in enumerate(batch):
        stored[f"batch_tokens_{index}"] = tokens
        stored[f"batch_logits_{index}"] = logits_of(model, tokens)[-1]
    return stored


def make(name: str, variant: Variant) -> None:
    directory = HERE / name
    model = transformers.AutoModelForCausalLM.from_config(variant.config())
    randomize(model, variant.embed_scale)
    save(variant, model, directory)
    stored = record(load(directory))
    np.savez_compressed(directory / "golden.npz", **stored)
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, logits up to {np.abs(stored['logits_long']).max():.2f}")


def main(names: list[str]) -> None:
    if unknown := set(names) - set(VARIANTS):
        sys.exit(f"no such golden: {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in names or VARIANTS:
        make(name, VARIANTS[name])


if __name__ == "__main__":
    main(sys.argv[1:])
