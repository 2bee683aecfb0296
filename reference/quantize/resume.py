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
from planish.reference.quantize.observe import ChannelAbsmax, fingerprint
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.search import BlockAlphas

ALPHAS = "alphas"  # the piece that holds a search's result


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
    """The directory's name, and a hash of its config and of its files' tensors, sizes and times."""
    entries = checkpoint.entries.items()
    tensors = [(name, one.file.name, one.dtype, one.shape, one.offset) for name, one in entries]
    files = {entry.file: entry.file.stat() for _, entry in entries}
    sizes = [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in files.items()]
    text = json.dumps([checkpoint.values, tensors, sorted(sizes)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{checkpoint.path.resolve().name} ({digest[:16]})"


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
