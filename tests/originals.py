"""What the original programs made (tests/golden/quantization), and planish's errors on the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.reference.files.load import Checkpoint, load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.model.weights import Weights, block_linears
from planish.reference.packing import unpack_nibbles
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.observe import embed_samples, run_block
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.schemes import linear_names
from planish.reference.quantized import QuantizedWeight, dequantize, to_layout

FOLDER = Path(__file__).parent / "golden/quantization"
MODEL = FOLDER / "llama"
Stored = Mapping[str, np.ndarray]


def stored(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def codes_of(golden: Stored, name: str) -> np.ndarray:
    """Codes uint8 [N, K] of a linear, or of a setting."""
    packed = golden[f"{name}/codes"]
    return unpack_nibbles(packed, 2 * packed.shape[1])


def same_share(weight: QuantizedWeight, expected: np.ndarray) -> float:
    """The share of a weight's codes [N, K] that are as expected."""
    codes = unpack_nibbles(to_layout(weight, "canonical").codes, weight.shape[1])
    return float((codes == expected).mean())


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """|found - expected|^2 / |expected|^2 in float64."""
    expected = expected.astype(np.float64)
    return float(np.square(found - expected).sum() / np.square(expected).sum())


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear of the goldens: weight float32 [N, K] and inputs float32 [T, K]."""

    w: np.ndarray
    x: np.ndarray

    def error(self, weight: QuantizedWeight) -> float:
        """|X (W' - W)^T|^2 / |X W^T|^2."""
        x = self.x.astype(np.float64)
        return relative_error(x @ self.w.T, x @ dequantize(weight).T)


def layer_of(golden: Stored) -> Layer:
    x = golden["x_codes"].astype(np.float32) * golden["x_gains"]
    return Layer(w=golden["w"].astype(np.float32), x=x)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of a quantized model: by block on the calibration ids, and KL in nats on others."""

    block: np.ndarray
    kl: float


def quantized(path: Path, golden: Stored, chosen: Recipe, runtime: Runtime = NUMPY) -> Checkpoint:
    """The tiny Llama by a recipe, calibrated on the golden's ids and written to a path."""
    checkpoint = open_checkpoint(MODEL)
    samples = [row.astype(np.int32) for row in golden["calibration"]]
    with CheckpointWriter(path, MODEL) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples, runtime=runtime)
    return open_checkpoint(path)


def errors_of(checkpoint: Checkpoint, golden: Stored) -> Errors:
    """The errors of a quantized model, as tests/golden/quantization/measure.py defines them."""
    whole, changed = load_weights(open_checkpoint(MODEL)), load_weights(checkpoint)
    held_out = golden["held_out"]
    logits, found = (logits_of(checkpoint, weights, held_out) for weights in (whole, changed))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, found))
    return Errors(
        block=block_errors(checkpoint, whole, changed, golden["calibration"]),
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
    )


def logits_of(checkpoint: Checkpoint, weights: Weights, ids: np.ndarray) -> np.ndarray:
    rows = [forward(checkpoint.config, weights, row.astype(np.int32)) for row in ids]
    return np.stack(rows).astype(np.float64)


def block_errors(
    checkpoint: Checkpoint, whole: Weights, changed: Weights, ids: np.ndarray
) -> np.ndarray:
    """|y' - y|^2 / |y|^2 after each block, each model fed by itself."""
    config, samples = checkpoint.config, [row.astype(np.int32) for row in ids]
    states = [embed_samples(config, weights, samples) for weights in (whole, changed)]
    errors = []
    for pair in zip(whole.blocks, changed.blocks, strict=True):
        states = [
            [run_block(config, block, x) for x in hidden]
            for block, hidden in zip(pair, states, strict=True)
        ]
        errors.append(relative_error(*(np.concatenate(hidden) for hidden in states)))
    return np.array(errors)


def same_shares(checkpoint: Checkpoint, golden: Stored) -> dict[str, float]:
    """The share of equal codes of every linear, by its name."""
    shares = {}
    for layer, block in enumerate(load_weights(checkpoint).blocks):
        names = linear_names(checkpoint, layer)
        for part, linear in block_linears(block).items():
            assert isinstance(linear.weight, QuantizedWeight)
            shares[names[part]] = same_share(linear.weight, codes_of(golden, names[part]))
    return shares
