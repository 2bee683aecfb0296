"""Make the goldens: python tests/golden/make.py [NAME ...]   (needs planish[oracle])

Each is a tiny model with random weights, saved by transformers, and the logits that transformers
computes from what was saved, in float32. The tests compare both engines with them and need
neither torch nor transformers. To add an architecture, add a row to CLASSIC or MODERN.

Variants of one shape share their weights, because all draw from the same SEED: two directories
that differ only in spelling must give equal logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import table
import torch
import transformers
from classic import CLASSIC
from modern import MODERN
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D
from variant import SEED, VOCABULARY, Variant

HERE = Path(__file__).parent
VARIANTS = CLASSIC | MODERN
LONG_POSITIONS = [0, 1, 2, 249, 498, 499]
BATCH_LENGTHS = (3, 17, 9)
DECODED_FROM = 490  # tokens of the long prompt; the rest comes one by one


def randomize(model: torch.nn.Module, embed_scale: float) -> None:
    """Weights large enough that attention is uneven; norms and biases neither 1 nor 0."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():  # a tied weight comes once
        module = model.get_submodule(name.rpartition(".")[0])
        noise = torch.randn(parameter.shape, generator=generator)
        if isinstance(module, torch.nn.Embedding):
            parameter.data = embed_scale * noise
        elif parameter.dim() > 1:
            inputs = parameter.shape[0 if isinstance(module, Conv1D) else -1]
            parameter.data = 1.5 * noise / inputs**0.5
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


def convert(variant: Variant, directory: Path) -> None:
    """Config and tensors into a layout that transformers cannot read, the logits being known."""
    if variant.convert is None:
        return
    config, file = directory / "config.json", directory / "model.safetensors"
    values, tensors = variant.convert(json.loads(config.read_text()), load_file(file))
    config.write_text(json.dumps(values, indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def load(variant: Variant, directory: Path) -> Any:
    """The saved model in float32; a tensor that transformers would make up is an error."""
    model, problems = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation=variant.attention,
        output_loading_info=True,
    )
    if any(problems.values()):
        raise ValueError(f"{directory}: not everything saved was loaded: {problems}")
    if variant.repair is not None:
        variant.repair(model)
    return model.eval()


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def decoded_logits(model: Any, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Logits of the prompt's last token and of each one after it, from transformers' cache."""
    ids = torch.from_numpy(tokens[None].astype(np.int64))
    with torch.no_grad():
        result = model(ids[:, :prompt], use_cache=True)
        rows = [result.logits[0, -1]]
        for step in range(prompt, len(tokens)):
            cache = result.past_key_values
            result = model(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
            rows.append(result.logits[0, -1])
    return torch.stack(rows).numpy()


def record(model: Any, decode: bool) -> dict[str, Any]:
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
    if decode:  # after the short prompts, which reset what transformers keeps of longer ones
        stored["logits_decoded"] = decoded_logits(model, long, DECODED_FROM)
    return stored


def make(name: str, variant: Variant) -> None:
    directory = HERE / name
    model = transformers.AutoModelForCausalLM.from_config(variant.config())
    randomize(model, variant.embed_scale)
    save(variant, model, directory)
    stored = record(load(variant, directory), variant.decode)
    convert(variant, directory)
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
    table.write()


if __name__ == "__main__":
    main(sys.argv[1:])
