"""Directories of pocket's model in the programs of their formats' owners; needs their packages.

transformers quantizes inputs with absmax / 127.5 and planish with absmax / 127, so logits of W8A8
and W4A8 are compared after `dequantize=True`, which leaves the inputs in floats.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.reference.files.export.conftest import logits

POCKET = Path(__file__).parents[4] / "pocket" / "model"
TOKENS = [1, 50, 90, 200, 71, 310, 33, 12, 400, 5]
RECIPES = {
    "W8A8": ({}, 1e-3),
    "W8A16": ({}, 1e-5),
    "W4A16": ({"group_size": 32}, 1e-5),
    "W4A16-asymmetric": ({"group_size": 32, "rule": "minmax"}, 1e-3),  # rounded to float16
    "W4A8": ({"group_size": 32, "activation": "per_token"}, 1e-3),
}


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")),
    reason="needs torch, transformers and compressed-tensors",
)
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize("name", RECIPES)
def test_transformers_computes_the_same_from_compressed_tensors(name, quantized, converted):
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    changes, tolerance = RECIPES[name]
    theirs = converted(quantized(POCKET, name.partition("-")[0], **changes), "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(
        theirs.path,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    with torch.no_grad():
        found = model(torch.tensor([TOKENS])).logits[0].float().numpy()
    expected = logits(converted(theirs, "float"), TOKENS)
    assert np.abs(found - expected).max() < tolerance * np.ptp(expected)
