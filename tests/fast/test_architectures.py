"""Every golden with quantized weights through the kernels: the same graph, other linears.

Weight-only recipes: no activation has a code that could flip, so logits are as near to the
reference's as those of float weights.
"""

from pathlib import Path

import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDENS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))


@pytest.mark.matrix(132, 3)
@pytest.mark.parametrize(
    "chosen", [recipe("W8A16"), recipe("W4A16", group_size=32)], ids=["W8A16", "W4A16"]
)
@pytest.mark.parametrize("name", GOLDENS)
def test_quantized_weights_give_the_references_logits(name, chosen, kernels, tmp_path):
    with CheckpointWriter(tmp_path / "quantized", GOLDEN / name) as writer:
        quantize_checkpoint(open_checkpoint(GOLDEN / name), writer, chosen)
    checkpoint = open_checkpoint(tmp_path / "quantized")
    prompt = np.load(GOLDEN / name / "golden.npz")["batch_tokens_1"].tolist()
    found = Engine(checkpoint, native=True).forward(prompt)
    expected = ReferenceEngine(checkpoint).forward(prompt)
    assert np.abs(found - expected).max() < 2e-5 * np.ptp(expected)
