"""What `inspect` says about a checkpoint of another program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.reference.files.formats.translate import Origin


def describe_origin(origin: Origin) -> dict[str, Any]:
    """Format, program and version, and bytes of the linears in the file."""
    return {
        "format": origin.format,
        "made_by": origin.made_by,
        "linear_bytes": dict(origin.bytes),
    }


def origin_lines(facts: Mapping[str, Any], schemes: Mapping[str, int]) -> list[str]:
    """The same as lines of text, with how many linears have each scheme."""
    by = f", made by {facts['made_by']}" if facts["made_by"] else ""
    lines = [f"  format {facts['format']}{by}; codes and scales as they are in the file"]
    for scheme, count in schemes.items():
        lines.append(f"  {count} linear{'s' if count > 1 else ''} in {scheme}")
    return lines
