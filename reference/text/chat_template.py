"""The chat template of a model: where it is stored, and the special tokens that it names.

    tokenizer_config.json            chat_template: a text, or a list of {"name", "template"}
    chat_template.jinja              the template `default`
    additional_chat_templates/       NAME.jinja: the template NAME
    FILE.gguf                        tokenizer.chat_template, tokenizer.chat_template.NAME, if there
                                     is no tokenizer.json

A later source replaces an earlier one of the same name, as in transformers.

Source: https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.reference.errors import ChatError, TokenizerError
from planish.reference.gguf import find_gguf
from planish.reference.json import read_json
from planish.reference.reading import MIB, read_file
from planish.reference.text.added_tokens import CONFIG, OLD_ROLES, ROLES
from planish.reference.text.gguf_tokenizer import gguf_chat_template

FILE, MORE = "chat_template.jinja", "additional_chat_templates"
DEFAULT, TOOLS = "default", "tool_use"
LARGEST = MIB  # bytes of a template; the longest of the public ones have 20,000
TURN = "eot_token"  # in GGUF files, the end of a turn where it is not the end of text


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Name -> source in jinja2; role of a special token (bos_token ...) -> its text."""

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]
    path: Path  # the model, or the file of --chat_template

    def source(self, with_tools: bool = False) -> str:
        """The template `tool_use` for tools, if there is one, else the default one."""
        name = TOOLS if with_tools and TOOLS in self.sources else DEFAULT
        if name not in self.sources:
            where: dict[str, Any] = {"path": self.path, "name": "chat_template"}
            found = ", ".join(self.sources)
            raise ChatError("is missing", **where, expected=f"one named {DEFAULT}", found=found)
        return self.sources[name]


def load_chat_template(
    path: str | Path, file: str | Path | None = None, config: str | Path | None = None
) -> ChatTemplate:
    """The template of a model directory or GGUF file; with `file`, the one in that file.

    config: a directory that replaces the keys of a GGUF file; its template and its special tokens
    are used, or the file's if it has no template. Raises ChatError if there is none: a base model
    continues text, and a template made up for it would be one that it was never trained on.
    """
    model = Path(path if config is None else config)
    if file is not None:
        given = {DEFAULT: _read_source(Path(file))}
        return ChatTemplate(sources=given, special_tokens=special_tokens(model), path=Path(file))
    values, directory = _facts_of(model), model if model.is_dir() else model.parent
    sources = dict(_stored_sources(directory, values))
    if not sources and config is not None:
        return load_chat_template(path)
    if not sources:
        expected = "an instruct model, or --chat_template FILE"
        raise ChatError("has no chat template: a base model", path=path, expected=expected)
    return ChatTemplate(sources=sources, special_tokens=_tokens_among(values), path=model)


def _facts_of(model: Path) -> dict[str, Any]:
    """tokenizer_config.json of a model, and the older file of special tokens; or a GGUF's keys."""
    gguf = None if (model / "tokenizer.json").exists() else find_gguf(model)
    if gguf is not None:
        return gguf_chat_template(gguf)
    files = (path for name in (OLD_ROLES, CONFIG) if (path := model / name).exists())
    return {key: value for path in files for key, value in read_json(path, TokenizerError).items()}


def _stored_sources(directory: Path, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and source of each template of a model, the deciding one last."""
    stored = values.get("chat_template")
    if isinstance(stored, str):
        yield DEFAULT, stored
    elif stored is not None:
        yield from _listed_sources(directory / CONFIG, stored)
    if (directory / FILE).exists():
        yield DEFAULT, _read_source(directory / FILE)
    for file in sorted((directory / MORE).glob("*.jinja")):
        yield file.stem, _read_source(file)


def _listed_sources(file: Path, listed: Any) -> Iterator[tuple[str, str]]:
    """The templates of tokenizer_config.json that have names."""
    expected = 'a text, or a list of {"name", "template"}'
    for one in listed if isinstance(listed, list) else [None]:
        pair = (one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None)
        if not isinstance(pair[0], str) or not isinstance(pair[1], str):
            where: dict[str, Any] = {"path": file, "name": "chat_template"}
            raise TokenizerError("bad value", **where, expected=expected, found=repr(one))
        yield pair[0], pair[1]


def _read_source(file: Path) -> str:
    """The text of a template; ChatError if it is missing, too long or not UTF-8."""
    try:
        return read_file(file, ChatError, LARGEST).decode("utf-8-sig")
    except OSError as problem:
        raise ChatError(f"cannot be read: {problem.strerror}", path=file) from None
    except UnicodeDecodeError as problem:
        found = f"byte {problem.start}"
        raise ChatError("is not text", path=file, expected="UTF-8", found=found) from None


def special_tokens(model: Path) -> dict[str, str]:
    """Role -> text (bos_token, eos_token ...) of the special tokens that a model names.

    model: its directory, its tokenizer.json, or a GGUF file.
    """
    return _tokens_among(_facts_of(model.parent if model.name == "tokenizer.json" else model))


def _tokens_among(values: Mapping[str, Any]) -> dict[str, str]:
    """The same among the values: a text, or {"content": text} with flags."""
    found = {}
    for role in (*ROLES, TURN):
        value = values.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[role] = text
    return found
