"""Add the tokens that tokenizer.json lacks from the files beside it, as transformers 5 does.

tokenizer_config.json lists tokens under `added_tokens_decoder`, id -> token. Checkpoints older than
that key have added_tokens.json, text -> id, and special_tokens_map.json instead. Both also name
tokens by their role (bos_token, pad_token ...); those are special and have no id there.

The tokenizers library gives a new token the next free id and no other. If a file lists a different
id, the token is left out with a notice: a model must not read an id that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from planish.reference.architectures.read.keys import LARGEST
from planish.reference.errors import TokenizerError, notice
from planish.reference.json import read_json

CONFIG = "tokenizer_config.json"
OLD_TOKENS, OLD_ROLES = "added_tokens.json", "special_tokens_map.json"
# in the order in which transformers adds them
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class ListedToken:
    """A token that a file beside tokenizer.json lists; one that has only a role has no id."""

    text: str
    id: int | None
    flags: dict[str, bool]
    file: Path


def add_missing_tokens(inner: tokenizers.Tokenizer, directory: Path) -> None:
    """Add the tokens that the files beside tokenizer.json list; TokenizerError for a bad entry.

    A token of tokenizer.json keeps its id and takes the flags that the other files give it.
    """
    known = inner.get_added_tokens_decoder()
    flags = {token.content: _flags_of(token) for token in known.values()}
    free = max(inner.get_vocab_size(with_added_tokens=False), max(known, default=-1) + 1)
    added, ignored = [], []
    for token in _listed_tokens(directory, flags).values():
        if not token.text:  # transformers skips it as well
            continue
        existing = inner.token_to_id(token.text)
        given = free if existing is None else existing
        taken = existing is None and inner.id_to_token(free) is not None  # ids with gaps
        if taken or token.id not in (None, given):
            ignored.append((token, given))
            continue
        free += existing is None
        if flags.get(token.text) != token.flags:
            added.append(tokenizers.AddedToken(token.text, **token.flags))
    if added:
        inner.add_tokens(added)
    _notice_ignored(ignored)


def _notice_ignored(ignored: list[tuple[ListedToken, int]]) -> None:
    """Log one line about the tokens whose id would differ from the one listed."""
    if not ignored:
        return
    token, given = ignored[0]
    listed = "no id" if token.id is None else f"id {token.id}"
    notice(
        f"{token.file}: tokens ignored, as tokenizer.json gives them another id:"
        f" {len(ignored)}, the first {token.text!r} with {listed}, not {given}"
    )


def _listed_tokens(directory: Path, known: dict[str, dict[str, bool]]) -> dict[str, ListedToken]:
    """Text -> token: first those with an id, in order of ids, then those with a role.

    `known`: the flags of the added tokens of tokenizer.json; a role changes only `special`.
    """
    file, old = directory / CONFIG, directory / OLD_ROLES
    config = _read(file)
    listed = config.get("added_tokens_decoder") is not None
    sources = [(file, config)] if listed else [(old, _read(old)), (file, config)]
    special = {token.text: token for token in _role_tokens(sources)}
    numbered = _numbered(config, file) if listed else _old_tokens(directory, set(special))
    tokens: dict[str, ListedToken] = {}
    for token in sorted(numbered, key=lambda token: token.id or 0):
        tokens.setdefault(token.text, token)
    for text, token in special.items():
        token = tokens.get(text) or replace(token, flags=known.get(text, token.flags))
        tokens[text] = replace(token, flags={**token.flags, "special": True})
    return tokens


def _numbered(config: dict[str, Any], file: Path) -> Iterator[ListedToken]:
    """The tokens of added_tokens_decoder."""
    listed, expected = config["added_tokens_decoder"], "an object, id -> token"
    if not isinstance(listed, dict):
        raise _bad(file, "added_tokens_decoder", expected, listed)
    for key, value in listed.items():
        name = f"added_tokens_decoder.{key}"
        if not isinstance(value, dict):
            raise _bad(file, name, "an object with content and flags", value)
        text, flags = _token(value, file, name)
        plain = key.isascii() and key.isdigit() and len(key) < 10
        number = _checked_id(int(key) if plain else key, file, name)
        yield ListedToken(text=text, id=number, flags=flags, file=file)


def _old_tokens(directory: Path, special: set[str]) -> Iterator[ListedToken]:
    """The tokens of added_tokens.json: normalized like other text unless they are special."""
    file = directory / OLD_TOKENS
    for text, value in _read(file).items():
        _token(text, file, text)
        flags = _flags(special=text in special, normalized=text not in special)
        yield ListedToken(text=text, id=_checked_id(value, file, text), flags=flags, file=file)


def _role_tokens(sources: list[tuple[Path, dict[str, Any]]]) -> Iterator[ListedToken]:
    """Each token with a role; the first source with that role decides, for lists the last."""
    for role in ROLES:
        having = ((file, values[role]) for file, values in sources if role in values)
        file, value = next(having, (None, None))
        if file is not None and value not in (None, ""):
            text, flags = _token(value, file, role)
            yield ListedToken(text=text, id=None, flags=flags, file=file)
    for name in LISTS:
        for file, values in reversed(sources):
            listed = values.get(name) or []
            if not isinstance(listed, list | dict):
                raise _bad(file, name, "a list of tokens", listed)
            for value in listed.values() if isinstance(listed, dict) else listed:
                text, flags = _token(value, file, name)
                yield ListedToken(text=text, id=None, flags=flags, file=file)
            if listed:
                break


def _token(value: Any, file: Path, name: str) -> tuple[str, dict[str, bool]]:
    """Text and flags of a token, which is a string or an object with flags."""
    values = value if isinstance(value, dict) else {"content": value, "special": True}
    text, special = values.get("content"), values.get("special", False)
    flags = _flags(special=special, normalized=not special)
    flags |= {flag: values[flag] for flag in FLAGS if flag in values}
    if not isinstance(text, str):
        raise _bad(file, name, "a token's text", text)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _bad(file, name, "a token's text, Unicode", text)
    for flag, found in flags.items():
        if not isinstance(found, bool):
            raise _bad(file, f"{name}.{flag}", "true or false", found)
    return text, flags


def _flags(*, special: bool, normalized: bool) -> dict[str, bool]:
    return {**dict.fromkeys(FLAGS, False), "special": special, "normalized": normalized}


def _flags_of(token: tokenizers.AddedToken) -> dict[str, bool]:
    return {flag: getattr(token, flag) for flag in FLAGS}


def _checked_id(value: Any, file: Path, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise _bad(file, name, f"an id in 0..{LARGEST}", value)
    return value


def _bad(file: Path, name: str, expected: str, found: object) -> TokenizerError:
    return TokenizerError("bad value", path=file, name=name, expected=expected, found=repr(found))


def _read(file: Path) -> dict[str, Any]:
    """The object in a file, or an empty one if there is no such file."""
    return read_json(file) if file.exists() else {}
