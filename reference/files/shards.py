"""Which files hold a model's tensors: model.safetensors, or shards with an index.

Nothing is unpickled, and no path leaves the directory, but for

    snapshots/<revision>/x -> ../../blobs/<hash>     the links that Hugging Face's own cache makes
    x -> anywhere                                    what the user allows: Nix, DVC, git-annex

Links that end in the directory are its own affair, however many there are on the way.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from planish.reference.errors import CheckpointError, ConfigError, notice
from planish.reference.files.safetensors import TensorEntry, read_entries, require_file
from planish.reference.json import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def find_entries(
    path: Path, allow_links: bool = False
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Every tensor of the directory, and those that only its index names, with their shards.

    As transformers decides, the one file goes before an index.
    """
    index, single = path / INDEX, path / SINGLE
    if single.exists():
        if index.exists():
            _refuse_climbing(index)
            notice(f"{index}: not read, as {SINGLE} is there")
        return read_entries(_inside(path, SINGLE, allow_links)), {}
    if index.exists():
        return _indexed_entries(path, index, allow_links)
    if single.is_symlink():  # to nothing, which the error says
        _inside(path, SINGLE, allow_links)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        problem = "pickled weights are never loaded; convert them to safetensors"
        raise CheckpointError(problem, path=path, found=pickles[0])
    raise CheckpointError(f"has no {SINGLE} and no index", path=path)


def _indexed_entries(
    path: Path, index: Path, allow_links: bool
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors of all shards, and those of the index that are in none.

    Raises CheckpointError where the index says another place than the shards.
    """
    check_file(index, allow_links)
    weight_map = _weight_map(index)
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        for name, entry in read_entries(_inside(path, shard, allow_links)).items():
            if name in entries:
                raise CheckpointError("stands in two shards", path=index, name=name, found=shard)
            if weight_map.get(name) != shard:
                found, problem = weight_map.get(name, "no entry"), "is not where the index says"
                raise CheckpointError(problem, path=index, name=name, expected=shard, found=found)
            entries[name] = entry
    return entries, {name: shard for name, shard in weight_map.items() if name not in entries}


def _refuse_climbing(index: Path) -> None:
    """An index that is not read may say anything but names that lead out of the directory."""
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
    """A weights file by its plain name, which must lie in the directory or the cache's blobs."""
    file = path / name
    if not file.exists():
        found = f"a link to {file.readlink()}, which is not there" if file.is_symlink() else None
        raise CheckpointError("shard is missing", path=file, found=found)
    check_file(file, allow_links)
    return file


def check_file(file: Path, allow_links: bool = False) -> None:
    """Raise CheckpointError for a link out of the file's directory, unless links are allowed, and
    for a pipe or the like.

    Without being asked, only Hugging Face's own cache may link out, from snapshots to its blobs.
    """
    require_file(file)
    if file.is_symlink() and not file.exists():
        found = f"a link to {file.readlink()}"
        raise CheckpointError("is not there", path=file, expected="a file", found=found)
    here = file.parent.resolve()
    try:
        target = file.resolve()
    except (OSError, RuntimeError):  # it links to itself: whoever opens it says so
        return
    if allow_links or target.is_relative_to(here):
        return
    blobs = [above.parent / "blobs" for above in here.parents if above.name == "snapshots"]
    if target.parent not in blobs:
        problem = "links out of the model's directory; give --allow_links if you trust it"
        raise CheckpointError(problem, path=file, found=target)
