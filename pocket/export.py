"""Export trained parameters as a Hugging Face directory in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from planish.pocket.bpe import END
from planish.pocket.llama import SHAPE, VOCABULARY

END_IDS = {"bos_token_id": 0, "eos_token_id": 0}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    **SHAPE,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    **END_IDS,
    "torch_dtype": "bfloat16",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END,
    "eos_token": END,
    "model_max_length": SHAPE["max_position_embeddings"],
    "clean_up_tokenization_spaces": False,
}


def export(params: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files; the weights are renamed into place when complete, for concurrent readers."""
    directory.mkdir(parents=True, exist_ok=True)
    hidden = directory / ".model.safetensors.tmp"
    save_file(hub_tensors(params), hidden, metadata={"format": "pt"})
    hidden.replace(directory / "model.safetensors")
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, values in (
        ("config.json", CONFIG),
        ("generation_config.json", END_IDS),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        (directory / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def hub_tensors(params: Any) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names; its linears are [N, K], flax's are [K, N]."""
    tensors = {}
    leaves = flatten_dict(params["params"])  # type: ignore[no-untyped-call]  # flax gives no type
    for path, leaf in leaves.items():
        array = leaf.T if path[-1] == "kernel" else leaf
        tensors[hub_name(path)] = np.ascontiguousarray(np.asarray(array).astype(ml_dtypes.bfloat16))
    return tensors


def hub_name(path: tuple[str, ...]) -> str:
    """("0.mlp", "up_proj", "kernel") -> "model.layers.0.mlp.up_proj.weight"."""
    if path[0] == "embed":
        return "model.embed_tokens.weight"
    if path[0] == "norm":
        return "model.norm.weight"
    return "model.layers." + ".".join(path[:-1]) + ".weight"
