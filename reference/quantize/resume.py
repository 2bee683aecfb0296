"""What a later run must know of an earlier one to go on with the same result, bit for bit.

The request: model, recipe, layout, samples and runner. A run with another one is refused. After
that only the tensors of finished blocks and the alphas that a search found are kept; the samples'
hidden states are computed again, by the same programs from the same blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.partial import Partial
from planish.reference.files.safetensors import TensorEntry
from planish.reference.quantize.observe import ChannelAbsmax, fingerprint
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.search import BlockAlphas

ALPHAS = "alphas"  # the piece that holds a search's result
PIECES, PIECE = 16, 4096  # of a large tensor: how many are hashed, and their bytes


def block_piece(layer: int) -> str:
    """The name of a finished block."""
    return f"block-{layer:05d}"


def describe_request(
    checkpoint: Checkpoint,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None,
    layout: str,
    runner: str,
) -> dict[str, Any]:
    """All that the result depends on, in JSON."""
    return {
        "model": identify_model(checkpoint),
        "recipe": asdict(recipe),
        "layout": layout,
        "calibration": None if samples is None else fingerprint(samples),
        "runner": runner,
    }


def identify_model(checkpoint: Checkpoint) -> str:
    """The directory's name, and a hash of its config and of its tensors (hash_tensor).

    Of content, not of times: a copy, or the same model downloaded again, is the same model.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.values, sort_keys=True).encode())
    for name, entry in sorted(checkpoint.entries.items()):
        digest.update(json.dumps([name, entry.dtype, entry.shape]).encode())
        digest.update(hash_tensor(entry))
    return f"{checkpoint.path.resolve().name} ({digest.hexdigest()[:16]})"


def hash_tensor(entry: TensorEntry) -> bytes:
    """SHA-256 of a tensor of up to PIECES * PIECE bytes, of evenly spaced pieces of a larger one.

    Another training step changes every piece, and a model of many gigabytes is read in a second. A
    change of a few weights of a large tensor by hand can go unnoticed.
    """
    data = entry.data[entry.offset : entry.offset + entry.size]
    if entry.size <= PIECES * PIECE:
        return hashlib.sha256(data.data).digest()
    starts = [i * (entry.size - PIECE) // (PIECES - 1) for i in range(PIECES)]
    return hashlib.sha256(b"".join(bytes(data[start : start + PIECE]) for start in starts)).digest()


def save_alphas(partial: Partial, found: BlockAlphas) -> None:
    """Keep the result of a search for alpha."""
    observed = enumerate(found.observed or [])
    tensors = {f"{i}/{part}": value for i, absmax in observed for part, value in absmax.items()}
    errors = None if found.errors is None else found.errors.tolist()
    partial.save(ALPHAS, tensors, {"alphas": found.alphas, "errors": errors})


def load_alphas(partial: Partial) -> BlockAlphas:
    """The result of a search that an earlier run has finished."""
    facts = partial.facts(ALPHAS)
    observed: list[ChannelAbsmax] = [{} for _ in facts["alphas"]]
    for name, entry in partial.tensors(ALPHAS).items():
        layer, _, part = name.partition("/")
        observed[int(layer)][part] = np.array(entry.map())
    errors = None if facts["errors"] is None else np.array(facts["errors"])
    return BlockAlphas(alphas=facts["alphas"], errors=errors, observed=observed)
