"""Read the prompts: first those of --prompt, then those of each --prompt_file.

A file is one prompt; a FILE.jsonl has one on each line: {"prompt": "text"}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from planish.reference.errors import PromptError, notice
from planish.reference.text.tokenizer import read_text

FIELD, FORM = "prompt", '{"prompt": "text"}'


def read_prompts(typed: Sequence[str], files: Sequence[str]) -> list[str]:
    """All prompts; raises PromptError for an empty one and for a file without any."""
    texts = [*typed, *(text for file in files for text in read_file(file))]
    if any(text == "" for text in texts):
        raise PromptError("is empty", name="prompt", expected="text, or no --prompt at all")
    return texts


def read_file(path: str) -> list[str]:
    """One prompt, or one from each line that is not blank."""
    if Path(path).suffix.lower() != ".jsonl":
        return [read_text(path)]
    extra: dict[str, None] = {}
    texts = list(read_lines(path, extra))
    if not texts:
        raise PromptError("contains no prompt", path=path, expected=f"lines like {FORM}")
    if extra:
        notice(f"{path}: fields that are not read: {', '.join(extra)}")
    return texts


def read_lines(path: str, extra: dict[str, None]) -> Iterator[str]:
    """The prompt of each line; `extra` collects the names of other fields.

    Only a newline ends a line: JSON strings may contain Unicode's other line separators.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = parse_line(path, number, line)
        extra |= dict.fromkeys(name for name in fields if name != FIELD)
        yield check_prompt(path, number, fields)


def parse_line(path: str, number: int, line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as problem:
        name, found = f"line {number}", line.strip()[:40]
        where = f" at column {problem.colno}" if isinstance(problem, json.JSONDecodeError) else ""
        reason = f"is not JSON{where}"
        raise PromptError(reason, path=path, name=name, expected=FORM, found=found) from None
    if not isinstance(fields, dict):
        name, found = f"line {number}", type(fields).__name__
        raise PromptError("is not an object", path=path, name=name, expected=FORM, found=found)
    return fields


def check_prompt(path: str, number: int, fields: dict[str, object]) -> str:
    """The field "prompt"; raises PromptError if it is missing, empty or not text."""
    name, text = f"line {number}: {FIELD}", fields.get(FIELD)
    if FIELD not in fields:
        found = ", ".join(fields) or "no field"
        raise PromptError("is missing", path=path, name=name, expected=FORM, found=found)
    if not isinstance(text, str) or not text:
        raise PromptError("bad value", path=path, name=name, expected="text", found=repr(text))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        found = f"a lone surrogate at character {problem.start}"
        raise PromptError("is not text", path=path, name=name, found=found) from None
    return text
