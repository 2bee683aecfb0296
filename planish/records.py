"""Read FILE.jsonl: an object on each line, or a text in one field of it, {"prompt": "text"}."""

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
    """The text of each line; `extra` collects the names of other fields."""
    form = f'{{"{field}": "text"}}'
    for number, fields in read_objects(path, form):
        name = f"line {number}: {field}"
        extra |= dict.fromkeys(other for other in fields if other != field)
        if field not in fields:
            found = ", ".join(fields) or "no field"
            raise PromptError("is missing", path=path, name=name, expected=form, found=found)
        yield check_text(path, name, fields[field])


def read_objects(path: str | Path, form: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The number, from 1, and the object of each line that is not blank. form: what to expect.

    Only a newline ends a line: JSON strings may contain Unicode's other line separators.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, _parse_line(path, number, line, form)


def _parse_line(path: str | Path, number: int, line: str, form: str) -> dict[str, object]:
    name = f"line {number}"
    try:
        fields = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as problem:
        found = line.strip()[:40]
        where = f" at column {problem.colno}" if isinstance(problem, json.JSONDecodeError) else ""
        reason = f"is not JSON{where}"
        raise PromptError(reason, path=path, name=name, expected=form, found=found) from None
    if not isinstance(fields, dict):
        found, reason = type(fields).__name__, "is not an object"
        raise PromptError(reason, path=path, name=name, expected=form, found=found)
    return fields


def check_text(path: str | Path, name: str, text: object) -> str:
    """A field's text; raises PromptError if it is empty or not text."""
    if not isinstance(text, str) or not text:
        raise PromptError("bad value", path=path, name=name, expected="text", found=repr(text))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        found = f"a lone surrogate at character {problem.start}"
        raise PromptError("is not text", path=path, name=name, found=found) from None
    return text
