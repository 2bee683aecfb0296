"""Make the directories beside this file: python tests/old/make.py   in a checkout of 0.1.0.

They are what planish 0.1.0 (quantization_config version 1) wrote, with the logits of its
reference. Run with a later version the script makes other directories: keep these.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
ROOT = Path.cwd()
sys.path[:0] = [str(ROOT)]

from planish.reference.checkpoint import load_weights, open_checkpoint  # noqa: E402
from planish.reference.model import forward  # noqa: E402
from planish.reference.quantize import quantize_checkpoint  # noqa: E402
from planish.reference.recipes import recipe  # noqa: E402
from planish.reference.writer import CheckpointWriter  # noqa: E402
from tests.reference.conftest import tensors_of, values_of  # noqa: E402

MIXTURE = {
    "model_type": "qwen3_moe",
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "head_dim": 8,
    "mlp_only_layers": [0],
}
MADE = {
    "o3-static": ({}, "O3", {"alpha": 0.5}, "tiles"),
    "w4a8-minmax-int8-head": (
        {},
        "W4A8",
        {"rule": "minmax", "group_size": 32, "head": "int8", "ignore": ("layers.0.*.o_proj",)},
        "canonical",
    ),
    "w4a16-experts": (MIXTURE, "W4A16", {"group_size": 32, "head": "int4"}, "tiles"),
}


def main() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 48, 32) for _ in range(4)]
    tokens = rng.integers(0, 48, 24)
    for name, (changes, recipe_name, options, layout) in MADE.items():
        with tempfile.TemporaryDirectory() as place:
            source = Path(place)
            values = values_of(**changes)
            (source / "config.json").write_text(json.dumps(values))
            save_file(tensors_of(values), source / "model.safetensors", {"format": "pt"})
            chosen, checkpoint = recipe(recipe_name, **options), open_checkpoint(source)
            with CheckpointWriter(HERE / name, source, overwrite=True) as writer:
                quantize_checkpoint(checkpoint, writer, chosen, samples, layout=layout)
        opened = open_checkpoint(HERE / name)
        logits = forward(opened.config, load_weights(opened), tokens)
        np.savez_compressed(HERE / name / "logits.npz", tokens=tokens, logits=logits)


if __name__ == "__main__":
    main()
