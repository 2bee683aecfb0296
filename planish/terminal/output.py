"""Print one JSON object; format counts in lines of text."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(values: dict[str, Any]) -> None:
    """Print one object; JSON has neither NaN nor infinity, so they become null."""
    print(json.dumps(finite(values), allow_nan=False))


def finite(value: Any) -> Any:
    """The same value with null for every float that is not finite."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counted(count: int, noun: str) -> str:
    """1 token, 2 tokens."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
