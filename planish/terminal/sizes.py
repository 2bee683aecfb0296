"""Sizes in bytes as users write them: 500M, 2G, 1.5GiB."""

from __future__ import annotations

import re

from planish.reference.errors import PlanishError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str | int | None, name: str) -> int | None:
    """2G -> 2147483648; K, M, G and T are powers of 1024. None is None.

    Raises PlanishError for anything else; `name` is the flag's.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(text).strip(), re.IGNORECASE)
    if found is None:
        expected = "bytes, as 500M or 2G"
        raise PlanishError("bad value", name=name, expected=expected, found=repr(text))
    return round(float(found[1]) * UNITS[found[2].upper()])
