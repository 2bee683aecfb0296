"""Which files contain a model's tensors: model.safetensors, or shards with an index.

Nothing is unpickled, and no path may leave the directory, with two exceptions:

    snapshots/<revision>/x -> ../../blobs/<hash>     links that Hugging Face's cache makes
    x -> anywhere                                    links that the user allows: Nix, DVC, git-annex

A chain of links that ends in the directory is accepted.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from planish.reference.errors import CheckpointError, ConfigError, notice
from planish.reference.files.safetensors import TensorEntry, read_entries
from planish.reference.json import read_json
from planish.reference.reading import require_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def find_entries(
    path: Path, allow_links: bool = False
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Every tensor of the directory, and the shard of each tensor that only the index names.

    If both exist, model.safetensors is read and the index ignored, as in transformers.
    """
    index, single = path / INDEX, path / SINGLE
    if single.exists():
        if index.exists():
            _refuse_climbing(index)
            notice(f"{index}: not read, as {SINGLE} is there")
        return read_entries(_inside(path, SINGLE, allow_links)), {}
    if index.exists():
        return _indexed_entries(path, index, allow_links)
    if single.is_symlink():  # a dangling link, which _inside reports
        _inside(path, SINGLE, allow_links)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        problem = "pickled weights are never loaded; convert them to safetensors"
        raise CheckpointError(problem, path=path, found=pickles[0])
    raise CheckpointError(f"has no {SINGLE} and no index", path=path)


def _indexed_entries(
    path: Path, index: Path, allow_links: bool
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors of all shards, and those that only the index names.

    Raises CheckpointError if the index and the shards disagree.
    """
    check_link(index, allow_links)
    weight_map = _weight_map(index)
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        for name, entry in read_entries(_inside(path, shard, allow_links)).items():
            if name in entries:
                raise CheckpointError("is in two shards", path=index, name=name, found=shard)
            if weight_map.get(name) != shard:
                found, problem = weight_map.get(name, "no entry"), "is not where the index says"
                raise CheckpointError(problem, path=index, name=name, expected=shard, found=found)
            entries[name] = entry
    return entries, {name: shard for name, shard in weight_map.items() if name not in entries}


def _refuse_climbing(index: Path) -> None:
    """Refuse file names that leave the directory, even in an index that is not read."""
    try:
        values = read_json(index).get("weight_map")
    except ConfigError:
        return
    for name in values.values() if isinstance(values, dict) else ():
        path = PurePath(str(name))
        if path.is_absolute() or ".." in path.parts:
            problem = "leads out of the model's directory"
            raise CheckpointError(problem, path=index, expected="the name of a file", found=name)


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


def _inside(path: Path, name: str, allow_links: bool) -> Path:
    """A weights file by its plain name; it must be in the directory or in the cache's blobs."""
    file = path / name
    if not file.exists():
        found = f"a link to {file.readlink()}, which is not there" if file.is_symlink() else None
        raise CheckpointError("shard is missing", path=file, found=found)
    check_link(file, allow_links)
    return file


def check_link(file: Path, allow_links: bool = False) -> None:
    """Raise CheckpointError for a link out of the file's directory, or a pipe, socket or device.

    allow_links permits any link; otherwise only Hugging Face's cache may link from snapshots to
    its blobs.
    """
    require_file(file, CheckpointError)
    if file.is_symlink() and not file.exists():
        found = f"a link to {file.readlink()}"
        raise CheckpointError("is not there", path=file, expected="a file", found=found)
    here = file.parent.resolve()
    try:
        target = file.resolve()
    except (OSError, RuntimeError):  # it links to itself: opening it reports that
        return
    if allow_links or target.is_relative_to(here):
        return
    blobs = [above.parent / "blobs" for above in here.parents if above.name == "snapshots"]
    if target.parent not in blobs:
        problem = "links out of the model's directory; give --allow_links if you trust it"
        raise CheckpointError(problem, path=file, found=target)
