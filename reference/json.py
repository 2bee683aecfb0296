"""A JSON file that nobody vouches for: one object, or a typed error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError, PlanishError

LARGEST_FILE = 2**26  # a JSON file of more than 64 MiB is not a config


def read_json(path: Path, error: type[PlanishError] = ConfigError) -> dict[str, Any]:
    """A JSON object from a file, or a typed error; duplicate keys and NaN are refused.

    A byte order mark, which some editors put first, is no part of it.
    """
    try:
        with path.open("rb") as file:  # a device has no size beforehand
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise error("is too large to be JSON", path=path)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise error("no such file", path=path) from None
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror}", path=path) from None
    except UnicodeDecodeError as problem:
        raise error(f"cannot be read: {problem}", path=path) from None
    if text.startswith("version https://git-lfs"):
        raise error("is a Git-LFS pointer, not the file; run `git lfs pull`", path=path)
    try:
        value = json.loads(
            text, object_pairs_hook=unique_keys, parse_float=_finite, parse_constant=_finite
        )
    except (ValueError, RecursionError) as problem:
        raise error(f"is not JSON: {problem}", path=path) from None
    if not isinstance(value, dict):
        raise error("wrong form", path=path, expected="a JSON object", found=type(value).__name__)
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of an object; ValueError where a key is there twice, which json would let pass."""
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key stands twice")
    return seen


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
