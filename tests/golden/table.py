"""Write reference/architectures/table.json, which `planish inspect --architectures` prints:

    python tests/golden/table.py        (make.py does it, too)

Each row says what the goldens of one model_type have, so that an installed package can say what
was checked although it has no goldens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from planish.reference.architectures import ENTRIES, architecture_of, model_config  # noqa: E402
from planish.reference.architectures.entry import Architecture  # noqa: E402
from planish.reference.model.config import ModelConfig  # noqa: E402

TABLE = ROOT / "reference" / "architectures" / "table.json"


def rows() -> list[dict[str, Any]]:
    """For each model_type: features of all its goldens, those of some, examples, goldens."""
    found: dict[str, list[tuple[str, ...]]] = {name: [] for name in ENTRIES}
    for file in sorted(HERE.glob("*/config.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        entry, config = architecture_of(values, file), model_config(values, file)
        found[entry.model_type].append(features(config, entry))
    return [row(name, goldens) for name, goldens in found.items()]


def row(name: str, goldens: list[tuple[str, ...]]) -> dict[str, Any]:
    words = list(dict.fromkeys(word for has in goldens for word in has))
    always = [word for word in words if all(word in has for has in goldens)]
    return {
        "model_type": name,
        "features": always,
        "in_some": [word for word in words if word not in always],
        "examples": list(ENTRIES[name].examples),
        "goldens": len(goldens),
    }


def features(config: ModelConfig, entry: Architecture) -> tuple[str, ...]:
    """What sets the model apart from a plain block, most telling first."""
    facts = norm_facts(config) | position_facts(config) | layer_facts(config) | other_facts(config)
    tensors = [entry.tensor(part) for part in entry.block]
    facts["fused tensors"] = any(tensor.fused for tensor in tensors)
    facts["transposed weights"] = any(tensor.transposed for tensor in tensors)
    return tuple(words for words, present in facts.items() if present)


def norm_facts(config: ModelConfig) -> dict[str, bool]:
    """Which norms, and where they sit."""
    return {
        config.norm.replace("_", " "): True,
        "1 + w norms": config.norm_plus_one,
        "norms without weights": not config.norm_affine,
        f"{config.norm_placement} norms": config.norm_placement != "pre",
        "parallel block": config.parallel,
        "q/k norms": config.qk_norm is not None,
        "embedding norm": config.embed_norm,
        "no final norm": not config.final_norm,
    }


def position_facts(config: ModelConfig) -> dict[str, bool]:
    """How a token knows its position."""
    facts = {"learned positions": config.position_offset is not None}
    facts["ALiBi"] = config.alibi is not None
    for rope in config.ropes:
        partial = "partial " if rope.dim < config.head_dim else ""
        facts[f"{partial}{'interleaved ' if rope.interleaved else ''}rotary"] = True
        if rope.scaling is not None:
            facts[f"rope {type(rope.scaling).__name__.lower()}"] = True
    facts["several ropes"] = len(config.ropes) > 1
    unturned = any(layer.rope is None for layer in config.layers)
    facts["layers without rotary"] = bool(config.ropes) and unturned
    return facts


def layer_facts(config: ModelConfig) -> dict[str, bool]:
    """Heads, windows and experts."""
    windows = {layer.window for layer in config.layers}
    fewer = config.num_kv_heads < config.num_heads
    facts = {
        "grouped queries": fewer and config.num_kv_heads > 1,
        "multi-query": fewer and config.num_kv_heads == 1,
        "sliding window": windows != {None} and len(windows) == 1,
        "windows in some layers": len(windows) > 1,
        "scores scaled by layer": len({layer.score_divisor for layer in config.layers}) > 1,
    }
    if moe := config.moe:
        facts["experts"] = True
        facts["normalized router"] = moe.normalized
        facts["experts in some layers"] = not all(layer.experts for layer in config.layers)
    return facts


def other_facts(config: ModelConfig) -> dict[str, bool]:
    """The MLP, biases, caps, and what is around the blocks."""
    biases = config.qkv_bias, config.o_bias, config.mlp_bias
    return {
        "gated MLP": config.gated_mlp,
        "soft caps": config.score_cap is not None or config.logit_cap is not None,
        "clipped q, k, v": config.qkv_clip is not None,
        "biases": all(biases),
        "q/k/v biases": biases[0] and not all(biases),
        "o biases": biases[1] and not all(biases),
        "MLP biases": biases[2] and not all(biases),
        "head bias": config.head_bias,
        "scaled embedding": config.embed_scale != 1,
        "projected embedding": config.projects,
        "tied head": config.tie_embeddings,
    }


def write() -> None:
    lines = ",\n".join(json.dumps(one) for one in rows())
    TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write()
