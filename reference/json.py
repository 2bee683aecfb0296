"""Read an untrusted JSON file: one object, or a typed error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError, PlanishError
from planish.reference.reading import LARGEST_JSON, read_file


def read_json(path: Path, error: type[PlanishError] = ConfigError) -> dict[str, Any]:
    """Read a JSON object from a file; duplicate keys, NaN and Inf are refused.

    A byte order mark, with which some editors begin a file, is skipped. Raises `error`.
    """
    text = _read_text(path, error)
    try:
        value = json.loads(
            text, object_pairs_hook=unique_keys, parse_float=finite, parse_constant=finite
        )
    except (ValueError, RecursionError) as problem:
        raise error(f"is not JSON: {problem}", path=path) from None
    if not isinstance(value, dict):
        raise error("wrong form", path=path, expected="a JSON object", found=type(value).__name__)
    return value


def _read_text(path: Path, error: type[PlanishError]) -> str:
    """The file's text, unless it only points to another file."""
    try:
        text = read_file(path, error, LARGEST_JSON).decode("utf-8-sig")
    except FileNotFoundError:
        raise error("no such file", path=path) from None
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror}", path=path) from None
    except UnicodeDecodeError as problem:
        raise error(f"cannot be read: {problem}", path=path) from None
    if text.startswith("version https://git-lfs"):
        raise error("is a Git-LFS pointer, not the file; run `git lfs pull`", path=path)
    return text


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; the json module would keep the last of two equal keys."""
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key occurs twice")
    return seen


def finite(text: str) -> float:
    """A number; the json module would also read NaN, Infinity and 1e999."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
