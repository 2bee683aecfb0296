"""The table of architectures: what each has, who uses it, how many goldens check it."""

from __future__ import annotations

from typing import Any

from planish.reference.architectures import ENTRIES
from planish.reference.architectures.features import golden_features


def architectures() -> list[dict[str, Any]]:
    """For each model_type: features of all its goldens, those of some, examples, goldens."""
    goldens, rows = golden_features(), []
    for name, entry in ENTRIES.items():
        variants = goldens.get(name, {})
        words = list(dict.fromkeys(word for has in variants.values() for word in has))
        always = [word for word in words if all(word in has for has in variants.values())]
        rows.append(
            {
                "model_type": name,
                "features": always,
                "in_some": [word for word in words if word not in always],
                "examples": list(entry.examples),
                "goldens": len(variants),
            }
        )
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """The same for people; features that only some goldens have are in brackets."""
    lines = ["| model_type | features | examples | goldens |", "| --- | --- | --- | ---: |"]
    for row in rows:
        words = ", ".join([*row["features"], *(f"[{word}]" for word in row["in_some"])])
        examples = ", ".join(row["examples"])
        lines.append(f"| {row['model_type']} | {words} | {examples} | {row['goldens']} |")
    return "\n".join(lines)
