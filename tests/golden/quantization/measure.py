"""What is stored of a quantized model: codes, and errors against the float model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers

Stored = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Coded:
    """The weight of one linear: codes uint8 [N, K], scale and zero [N, G], (q - z) * s."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group_size: int = 32

    @property
    def values(self) -> np.ndarray:
        """The dequantized weight, float32 [N, K]."""
        columns = self.codes.shape[1]
        scale, zero = (
            np.repeat(kind.astype(np.float32), self.group_size, axis=1)[:, :columns]
            for kind in (self.scale, self.zero)
        )
        return (self.codes.astype(np.float32) - zero) * scale


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a program made of a model: linears and norms by name, and anything else to store."""

    linears: Mapping[str, Coded]
    norms: Mapping[str, np.ndarray] = field(default_factory=dict)
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


def code(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, group_size: int = 32) -> Coded:
    """The codes of a dequantized weight [N, K]; fails unless they give that weight again."""
    columns = values.shape[1]
    wide = [np.repeat(kind, group_size, axis=1)[:, :columns] for kind in (scale, zero)]
    codes = np.rint(values / wide[0]) + wide[1]
    if codes.min() < 0 or codes.max() > 15:
        raise ValueError(f"codes from {codes.min()} to {codes.max()}, expected 0 to 15")
    found = Coded(
        codes=codes.astype(np.uint8),
        scale=scale,
        zero=zero.astype(np.uint8),
        group_size=group_size,
    )
    if not np.allclose(found.values, values, atol=1e-6 * np.abs(values).max(), rtol=1e-5):
        raise ValueError("the recorded scales do not explain the program's weight")
    return found


def insert(model: transformers.LlamaForCausalLM, result: Result) -> None:
    """Give a float model the program's weights."""
    for name, coded in result.linears.items():
        model.get_submodule(name).weight.data = torch.from_numpy(coded.values)
    for name, gain in result.norms.items():
        model.get_submodule(name).weight.data = torch.from_numpy(gain)


def pack(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the even column in the low half: [N, K] -> [N, K / 2]."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def to_stored(result: Result) -> Stored:
    """NAME/codes (packed), NAME/scale, NAME/zero (packed, if not all are 8), NAME/gain."""
    stored: Stored = dict(result.more)
    for name, coded in result.linears.items():
        stored[f"{name}/codes"] = pack(coded.codes)
        stored[f"{name}/scale"] = coded.scale
        if (coded.zero != 8).any():
            stored[f"{name}/zero"] = pack(coded.zero)
    return stored | {f"{name}/gain": gain for name, gain in result.norms.items()}


def run(
    model: transformers.LlamaForCausalLM, ids: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Outputs of every block (before the last norm) and logits, float64."""
    outputs: list[np.ndarray] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: outputs.append(out.double().numpy()))
        for block in model.model.layers
    ]
    with torch.no_grad():
        logits = model(torch.from_numpy(ids.astype(np.int64))).logits.double().numpy()
    for hook in hooks:
        hook.remove()
    return outputs, logits


def errors(
    whole: transformers.LlamaForCausalLM,
    quantized: transformers.LlamaForCausalLM,
    calibration: np.ndarray,
    held_out: np.ndarray,
) -> Stored:
    """block_error [L]: |y' - y|^2 / |y|^2 of the blocks' outputs on the calibration ids, each
    model fed by itself; logit_error, the same of the logits on the ids kept away; kl, nats a token.
    """
    blocks = [run(model, calibration)[0] for model in (whole, quantized)]
    logits, changed = (run(model, held_out)[1] for model in (whole, quantized))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, changed))
    return {
        "block_error": np.array([relative_error(*pair) for pair in zip(*blocks, strict=True)]),
        "logit_error": np.array(relative_error(logits, changed)),
        "kl": np.array((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
    }


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(found - expected).sum() / np.square(expected).sum())
