"""What `inspect` says about a checkpoint of another program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from planish.reference.files.formats.translate import Origin
from planish.reference.scheme import Scheme


def describe_origin(origin: Origin, schemes: Iterable[Scheme | None]) -> dict[str, Any]:
    """Format, program and version, bytes of the linears in the file, and what no kernel takes.

    schemes: of every linear.
    """
    foreign = Counter(str(one) for one in schemes if one is not None and not one.has_tiles)
    return {
        "format": origin.format,
        "made_by": origin.made_by,
        "linear_bytes": dict(origin.bytes),
        "without_kernels": dict(foreign),
    }


def origin_lines(facts: Mapping[str, Any], schemes: Mapping[str, int]) -> list[str]:
    """The same as lines of text, with how many linears have each scheme."""
    by = f", made by {facts['made_by']}" if facts["made_by"] else ""
    lines = [f"  format {facts['format']}{by}; codes and scales as they are in the file"]
    for scheme, count in schemes.items():
        where = "; XLA computes it, no native kernel" if scheme in facts["without_kernels"] else ""
        lines.append(f"  {count} linear{'s' if count > 1 else ''} in {scheme}{where}")
    return lines


def name_without_kernels(schemes: Iterable[Scheme | None]) -> str | None:
    """A notice about linears that the native kernels do not take; None if there are none."""
    foreign = Counter(str(one) for one in schemes if one is not None and not one.has_tiles)
    if not foreign:
        return None
    words = ", ".join(f"{count} in {scheme}" for scheme, count in foreign.items())
    return f"kernels: XLA computes the linears that no native kernel takes: {words}"
