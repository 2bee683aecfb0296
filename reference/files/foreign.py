"""Directories and GGUF files of other programs: which they are, and their tensors as planish's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.reference.architectures import model_config
from planish.reference.files.entries import Declared
from planish.reference.files.formats import FORMATS, READERS, find_reader
from planish.reference.files.formats.gguf import translate_gguf
from planish.reference.files.formats.gguf_config import architecture, rebuild_config
from planish.reference.files.formats.stored import Source
from planish.reference.files.formats.translate import Origin, translate
from planish.reference.files.safetensors import TensorEntry
from planish.reference.files.shards import check_link
from planish.reference.gguf import GgufFile, read_gguf
from planish.reference.json import read_json
from planish.reference.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Translated:
    """What a checkpoint has, in planish's terms. declared: None if all weights are floats."""

    values: dict[str, Any]  # config.json, without a quantization_config if nothing is declared
    entries: dict[str, TensorEntry]
    declared: Declared | None
    origin: Origin
    gguf: GgufFile | None = None  # of which it was made


def with_old_config(values: dict[str, Any], path: Path, allow_links: bool) -> dict[str, Any]:
    """config.json with the quantization_config that old programs wrote elsewhere.

    GPTQ before 2024 has a file of its own, compressed-tensors another name.
    """
    file = path / "quantize_config.json"
    if "quantization_config" in values:
        return values
    if isinstance(values.get("compression_config"), dict):
        old = {"quant_method": "compressed-tensors", **values["compression_config"]}
        return {**values, "quantization_config": old}
    if not file.exists():
        return values
    check_link(file, allow_links)
    return {**values, "quantization_config": {"quant_method": "gptq", **read_json(file)}}


def reader_of(values: dict[str, Any]) -> str | None:
    """The reader of another program's format, by its name in READERS; None without one."""
    found = values.get("quantization_config")
    own = isinstance(found, dict) and any(form.detect(found) for form in FORMATS.values())
    return find_reader(found) if isinstance(found, dict) and not own else None


def translate_directory(
    path: Path,
    values: dict[str, Any],
    entries: dict[str, TensorEntry],
    reader: str,
    tied_head: str | None,
) -> Translated:
    """The tensors of a directory, read by a reader of READERS.

    tied_head: the prefix of lm_head, if it is the embedding.
    """
    said = values["quantization_config"]
    source = Source(path=path, values=said, entries=entries, tied_head=tied_head)
    entries, declared, origin = translate(reader, READERS[reader], source)
    if declared is None:
        values = {k: v for k, v in values.items() if k != "quantization_config"}
    return Translated(values=values, entries=entries, declared=declared, origin=origin)


def translate_file(file: Path, path: Path, given: Path | None) -> tuple[ModelConfig, Translated]:
    """A GGUF file, with the config.json of a directory: `given`, or `path` if it has one."""
    found, beside = read_gguf(file), (given or path) / "config.json"
    architecture(found)
    has_config = given is not None or (path.is_dir() and beside.exists())
    values = read_json(beside) if has_config else rebuild_config(found)
    values = {k: v for k, v in values.items() if k != "quantization_config"}
    config = model_config(values, beside if has_config else file)
    heads = config.num_heads, config.num_kv_heads
    entries, declared, origin = translate_gguf(found, heads, config.tie_embeddings)
    made = Translated(values=values, entries=entries, declared=declared, origin=origin, gguf=found)
    return config, made
