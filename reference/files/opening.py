"""Open a model directory: read its config, find and name its tensors, without reading them.

A `quantization_config` must be in a format that we read (formats/), and every tensor that the model
needs must exist. Others are allowed if they change nothing (names.py). load.py then reads the
tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.reference.architectures import architecture_of, model_config
from planish.reference.architectures.read.keys import Keys
from planish.reference.errors import CheckpointError, ConfigError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.entries import Declared
from planish.reference.files.foreign import (
    Translated,
    reader_of,
    translate_directory,
    translate_file,
    with_old_config,
)
from planish.reference.files.formats import FORMATS, Format, find_format
from planish.reference.files.fused import split_fused
from planish.reference.files.names import plain_names, rename_entries
from planish.reference.files.required import check_targets, set_aside_unused
from planish.reference.files.shards import check_link, find_entries
from planish.reference.files.writer import MORE_TEMPLATES, companions
from planish.reference.gguf import find_gguf, split_parts
from planish.reference.json import read_json
from planish.reference.model.config import ModelConfig


def open_checkpoint(
    path: str | Path, allow_links: bool = False, config: str | Path | None = None
) -> Checkpoint:
    """Open a model directory; raises ConfigError or CheckpointError with path, name and values.

    allow_links: whether its files may be links out of the directory (shards.py). config: for a GGUF
    file, the directory of a config.json and a tokenizer.json to use in place of the file's keys.
    """
    path = Path(path)
    if (file := find_gguf(path)) is not None:
        for part in split_parts(file):
            check_link(part, allow_links)
        return _open_gguf(file, path, None if config is None else Path(config), allow_links)
    if config is not None:
        raise ConfigError("is for a GGUF file; a directory has its own", name="config", found=path)
    if not path.is_dir():
        raise CheckpointError("is not a directory with a model, nor a GGUF file", path=path)
    check_companions(path, allow_links)
    values = read_json(path / "config.json")
    values = with_old_config(values, path, allow_links)
    reader = reader_of(values)
    form, declared = _format_of(values, path) if reader is None else (None, None)
    features = model_config(values, path / "config.json")
    features = _with_generation(features, path, "eos_token_id" in values)
    if declared is not None:
        features = replace(features, attention=declared.attention, kv_cache=declared.kv_cache)
    architecture = architecture_of(values, path)
    entries, absent = find_entries(path, allow_links)
    plain = plain_names([*entries, *absent], architecture)
    checkpoint = Checkpoint(
        path,
        values,
        features,
        architecture,
        rename_entries(path, entries, plain),
        format=form,
        declared=declared,
    )
    if reader is not None:
        made = translate_directory(path, values, checkpoint.entries, reader, _tied_head(checkpoint))
        checkpoint = split_fused(_with_translated(checkpoint, made))
    checkpoint = set_aside_unused(
        checkpoint, {plain[name]: shard for name, shard in absent.items()}
    )
    check_targets(checkpoint)
    return checkpoint


def check_companions(path: Path, allow_links: bool) -> None:
    """Check the links of what is read or copied, in addition to weights and their index."""
    for name in ("config.json", MORE_TEMPLATES, *companions(path)):
        check_link(path / name, allow_links)


def _open_gguf(file: Path, path: Path, given: Path | None, allow_links: bool) -> Checkpoint:
    """A GGUF file, with the config.json given or beside it if there is one."""
    if given:
        check_companions(given, allow_links)
    config, made = translate_file(file, path, given)
    stated = "eos_token_id" in made.values
    config = config if given is None else _with_generation(config, given, stated)
    architecture = architecture_of(made.values, path)
    checkpoint = Checkpoint(
        path, made.values, config, architecture, made.entries, config_path=given
    )
    checkpoint = set_aside_unused(_with_translated(checkpoint, made), {})
    check_targets(checkpoint)
    return checkpoint


def _tied_head(checkpoint: Checkpoint) -> str | None:
    """The prefix of lm_head, if it is the embedding and nothing of it is stored."""
    prefix = checkpoint.prefix("head")
    stored = any(name.startswith(f"{prefix}.") for name in checkpoint.entries)
    return prefix if checkpoint.config.tie_embeddings and not stored else None


def _with_translated(checkpoint: Checkpoint, made: Translated) -> Checkpoint:
    """The checkpoint of another program as one of planish's own."""
    return replace(
        checkpoint,
        values=made.values,
        entries=made.entries,
        format=None if made.declared is None else FORMATS["planish"],
        declared=made.declared,
        origin=made.origin,
        gguf=made.gguf,
    )


def _with_generation(config: ModelConfig, path: Path, stated: bool) -> ModelConfig:
    """The config with the end-of-text ids of generation_config.json, if it exists.

    They are added to those that config.json states, as each file alone may lack the token that
    ends a turn; they replace a default of the architecture.
    """
    file = path / "generation_config.json"
    if not file.exists():
        return config
    ids = Keys(read_json(file), file).token_ids("eos_token_id")
    known = config.eos_token_ids if stated or not ids else ()
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*known, *ids))))


def _format_of(values: dict[str, Any], path: Path) -> tuple[Format | None, Declared | None]:
    """The format of quantized weights and what it declares; ConfigError if we do not read it."""
    found = values.get("quantization_config")
    if found is None:
        return None, None
    file, name = path / "config.json", "quantization_config"
    if not isinstance(found, dict):
        found = type(found).__name__
        raise ConfigError("wrong form", path=file, name=name, expected="an object", found=found)
    form = find_format(found, file)
    return form, form.parse(found, file)
