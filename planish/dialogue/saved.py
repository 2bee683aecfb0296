"""Conversations in files: a JSON list of messages, as chat APIs take them.

    [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "Hello"},
      {"role": "assistant", "content": "Hi."}
    ]

An object with such a list under "messages" is read, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.dialogue.messages import Message, Messages
from planish.reference.errors import OutputError, PromptError
from planish.reference.text.tokenizer import read_text

ROLES = ("system", "user", "assistant")
FORM = '[{"role": "user", "content": "text"}, ...]'


def save_messages(messages: Sequence[Message], path: Path, overwrite: bool = False) -> None:
    """Write a file, whole or not at all. OutputError if it exists, without `overwrite`."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if not overwrite:
            path.open("xb").close()  # the name is ours now
        try:
            with hidden.open("xb") as file:
                file.write(as_json(messages))
                file.flush()
                os.fsync(file.fileno())
            hidden.replace(path)
        except BaseException:
            _remove(hidden, *([] if overwrite else [path]))
            raise
    except FileExistsError:
        raise OutputError("exists already", path=path, expected="/save --overwrite FILE") from None
    except OSError as problem:
        raise OutputError(f"cannot be written: {problem.strerror}", path=path) from None


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def as_json(messages: Sequence[Message]) -> bytes:
    """The bytes of a file; half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    try:
        return (json.dumps(list(messages), ensure_ascii=False, indent=2) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(list(messages), indent=2) + "\n").encode()


def load_messages(path: Path) -> Messages:
    """Read a conversation. PromptError with its place for what is no message."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as problem:
        raise PromptError(f"is not JSON: {problem}", path=path) from None
    listed = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(listed, list):
        found = type(listed).__name__
        raise PromptError("wrong form", path=path, expected=FORM, found=found)
    turns = [_read_message(path, number, one) for number, one in enumerate(listed, 1)]
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
    if any(turn["role"] == "system" for turn in turns):
        name, expected = "messages", "a system message at the beginning only"
        raise PromptError("wrong order", path=path, name=name, expected=expected)
    return Messages(system=system, turns=turns)


def _read_message(path: Path, number: int, value: Any) -> Message:
    name = f"message {number}"
    if not isinstance(value, dict):
        found = type(value).__name__
        raise PromptError("wrong form", path=path, name=name, expected=FORM, found=found)
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        expected = f"one of {', '.join(ROLES)}"
        where: dict[str, Any] = {"path": path, "name": f"{name}: role"}
        raise PromptError("bad value", **where, expected=expected, found=repr(role))
    if not isinstance(content, str):
        where = {"path": path, "name": f"{name}: content"}
        raise PromptError("bad value", **where, expected="a text", found=repr(content))
    return value
