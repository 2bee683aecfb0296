"""Read FILE.jsonl: a text in one field of each line, as in {"prompt": "text"}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from planish.reference.errors import PromptError, notice
from planish.reference.json import unique_keys
from planish.reference.text.tokenizer import read_text

MOST_NAMED = 8  # fields that are not read


def read_records(path: str | Path, field: str) -> list[str]:
    """The text of each line that is not blank; a notice names the fields that are not read.

    Raises PromptError, with the number of the line, for one that is not a JSON object or whose
    field is missing, empty or not text.
    """
    extra: dict[str, None] = {}
    texts = list(_read_lines(path, field, extra))
    if extra:
        names = ", ".join([*list(extra)[:MOST_NAMED], *["..."][: len(extra) > MOST_NAMED]])
        notice(f"{path}: fields that are not read: {names}")
    return texts


def _read_lines(path: str | Path, field: str, extra: dict[str, None]) -> Iterator[str]:
    """The text of each line; `extra` collects the names of other fields.

    Only a newline ends a line: JSON strings may contain Unicode's other line separators.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = _parse_line(path, number, line, field)
        extra |= dict.fromkeys(name for name in fields if name != field)
        yield _check_text(path, number, fields, field)


def _form(field: str) -> str:
    return f'{{"{field}": "text"}}'


def _parse_line(path: str | Path, number: int, line: str, field: str) -> dict[str, object]:
    name = f"line {number}"
    try:
        fields = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as problem:
        found, expected = line.strip()[:40], _form(field)
        where = f" at column {problem.colno}" if isinstance(problem, json.JSONDecodeError) else ""
        reason = f"is not JSON{where}"
        raise PromptError(reason, path=path, name=name, expected=expected, found=found) from None
    if not isinstance(fields, dict):
        found, reason = type(fields).__name__, "is not an object"
        raise PromptError(reason, path=path, name=name, expected=_form(field), found=found)
    return fields


def _check_text(path: str | Path, number: int, fields: dict[str, object], field: str) -> str:
    """The field's text; raises PromptError if it is missing, empty or not text."""
    name, text = f"line {number}: {field}", fields.get(field)
    if field not in fields:
        found, expected = ", ".join(fields) or "no field", _form(field)
        raise PromptError("is missing", path=path, name=name, expected=expected, found=found)
    if not isinstance(text, str) or not text:
        raise PromptError("bad value", path=path, name=name, expected="text", found=repr(text))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        found = f"a lone surrogate at character {problem.start}"
        raise PromptError("is not text", path=path, name=name, found=found) from None
    return text
