"""Cut the checkpoints that other programs wrote to tests/foreign: one layer, few tokens, hashes.

    python tests/golden/foreign.py SAMPLES

SAMPLES has a directory for each: config.json, model.safetensors, dequantized.npz (the weights as
the owner's routine dequantizes them, scales widened to float32), MADE_BY.json. The tensors of layer
0 are kept to the byte, the embedding is cut to ROWS rows and tied, and of each dequantized weight
the SHA-256 of its float32 bytes is kept. GGUF files are copied whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from planish.reference.files.safetensors import read_entries

TARGET = Path(__file__).parents[1] / "foreign"
ROWS = 32  # of the embedding
EMBEDDING = "model.embed_tokens."
NOT_KEPT = ("gguf-q8_0",)  # Q8_0 is in gguf-q4_0 too
SAME_WEIGHTS = {"ct-w8a8-static-asym": "ct-w8a8"}  # has no dequantized.npz
LEFT_OUT = ("model.layers.1.", "lm_head.")


def cut_tensors(source: Path, target: Path) -> None:
    """Layer 0, norms and the first rows of the embedding, in the types of the file."""
    header, data = {}, b""
    for name, entry in read_entries(source).items():
        if name.startswith(LEFT_OUT):
            continue
        raw, shape = entry.data[entry.offset : entry.offset + entry.size], list(entry.shape)
        if name.startswith(EMBEDDING):
            raw = raw.reshape(shape[0], -1)[:ROWS].reshape(-1)
            shape[0] = ROWS
        start, data = len(data), data + raw.tobytes()
        place = [start, len(data)]
        header[name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(len(text).to_bytes(8, "little") + text + data)


def cut_config(source: Path, target: Path) -> None:
    """The config of a model with one layer and a tied head."""
    values = json.loads(source.read_text())
    values |= {"num_hidden_layers": 1, "vocab_size": ROWS, "tie_word_embeddings": True}
    target.write_text(json.dumps(values, indent=1) + "\n")


def hash_weights(source: Path) -> dict[str, str]:
    """Name of a linear or embedding -> hash of its float32 weights."""
    found = {}
    for name, weights in np.load(source).items():
        if name.startswith(LEFT_OUT):
            continue
        rows = weights[:ROWS] if name.startswith(EMBEDDING) else weights
        found[name.removesuffix(".weight")] = digest(rows)
    return found


def digest(weights: np.ndarray) -> str:
    """SHA-256 of float32 numbers; -0 counts as 0."""
    plain = np.ascontiguousarray(weights, np.float32) + np.float32(0)
    return hashlib.sha256(plain.tobytes()).hexdigest()


def cut_sample(source: Path) -> None:
    """One sample."""
    target = TARGET / source.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "MADE_BY.json", target / "MADE_BY.json")
    if (source / "model.gguf").exists():
        shutil.copyfile(source / "model.gguf", target / "model.gguf")
        weights = {name: digest(w) for name, w in np.load(source / "dequantized.npz").items()}
    else:
        cut_tensors(source / "model.safetensors", target / "model.safetensors")
        cut_config(source / "config.json", target / "config.json")
        weights = {}
        twin = source.with_name(SAME_WEIGHTS.get(source.name, source.name))
        if (twin / "dequantized.npz").exists():
            weights = hash_weights(twin / "dequantized.npz")
    (target / "dequantized.json").write_text(json.dumps(weights, indent=1) + "\n")


if __name__ == "__main__":
    for directory in sorted(Path(sys.argv[1]).iterdir()):
        if directory.is_dir() and directory.name not in NOT_KEPT:
            cut_sample(directory)
