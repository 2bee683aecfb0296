"""Which files hold a model's tensors: model.safetensors, or shards with an index.

Nothing is unpickled and no path leaves the directory, but for the links that Hugging Face's own
cache makes from snapshots/<revision>/ to ../../blobs/.
"""

from __future__ import annotations

import re
from pathlib import Path

from reference.errors import CheckpointError, ConfigError
from reference.keys import read_json
from reference.tensorfile import TensorEntry, read_entries

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def find_entries(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of the directory; the index, where there is one, has the last word."""
    index = path / INDEX
    if index.exists():
        return _indexed_entries(path, index)
    if (path / SINGLE).exists():
        return read_entries(_inside(path, SINGLE))
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        problem = "pickled weights are never loaded; convert them to safetensors"
        raise CheckpointError(problem, path=path, found=pickles[0])
    raise CheckpointError(f"has no {SINGLE} and no index", path=path)


def _indexed_entries(path: Path, index: Path) -> dict[str, TensorEntry]:
    """The tensors of all shards; raises CheckpointError where index and shards disagree."""
    weight_map = _weight_map(index)
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        for name, entry in read_entries(_inside(path, shard)).items():
            if name in entries:
                raise CheckpointError("stands in two shards", path=index, name=name, found=shard)
            if weight_map.get(name) != shard:
                found, problem = weight_map.get(name, "no entry"), "is not where the index says"
                raise CheckpointError(problem, path=index, name=name, expected=shard, found=found)
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise CheckpointError("is missing", path=path / shard, name=name)
    return entries


def _weight_map(index: Path) -> dict[str, str]:
    values = read_json(index).get("weight_map")
    good = isinstance(values, dict) and all(isinstance(v, str) for v in values.values())
    if not isinstance(values, dict) or not good:
        expected = "tensor name -> file name"
        raise ConfigError("bad value", path=index, name="weight_map", expected=expected)
    for shard in values.values():
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            problem = "a shard must be a plain file name"
            raise CheckpointError(problem, path=index, found=repr(shard))
    return values


def _inside(path: Path, name: str) -> Path:
    """A weights file by its plain name, which must lie in the directory or the cache's blobs."""
    file = path / name
    if not file.exists():
        raise CheckpointError("shard is missing", path=file)
    check_link(file)
    return file


def check_link(file: Path) -> None:
    """Raise CheckpointError if a file is a link out of its directory.

    Only Hugging Face's own cache may link out, from snapshots/x to its blobs.
    """
    here = file.parent.resolve()
    if file.resolve().parent not in (here, here.parent.parent / "blobs"):
        raise CheckpointError("links out of the model's directory", path=file, found=file.resolve())
