"""What the tables of bench and of bench --serve say in the same words."""

from __future__ import annotations

from typing import Any


def format_machine(result: dict[str, Any]) -> str:
    """Where a table was measured, and how often."""
    machine = result["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores; jaxlib {machine['jaxlib']}, Python"
        f" {machine['python']}; medians of {result['rows'][0]['runs']} rounds"
    )


def format_ratio(row: dict[str, Any]) -> str:
    """How planish compares with a peer, and in which format."""
    return "" if row["ratio"] is None else f"{row['ratio']:.2f} ({row['compared_with']})"


def format_form(row: dict[str, Any]) -> str:
    """The format of the weights, and the engine's mode."""
    return f"{row['format']}, {row['mode']}" if row["mode"] else str(row["format"])
