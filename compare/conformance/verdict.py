"""The report: a table, the first mismatch, the verdict in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planish.compare.conformance.check import Check
from planish.compare.conformance.transformer import ModelFigures


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every check that was made, in order."""

    name: str  # of the model
    checks: tuple[Check, ...]
    subject: str = "planish"
    form: str = ""  # how the subject computes, in a few words
    kernels: tuple[str, ...] = ()  # instruction sets; none where there is one form only
    figures: ModelFigures | None = None  # of level 3

    @property
    def agree(self) -> bool:
        return all(check.agrees for check in self.checks)

    @property
    def first_mismatch(self) -> Check | None:
        """The first failure of the lowest level: the one to look at."""
        failed = [check for check in self.checks if not check.agrees]
        return min(failed, key=lambda check: check.level) if failed else None

    def rows(self) -> list[dict[str, Any]]:
        """Per level and layer the worst error, in units of its tolerance, and codes off by one."""
        groups: dict[tuple[int, int | None], list[Check]] = {}
        for item in self.checks:
            groups.setdefault((item.level, item.layer), []).append(item)
        return [summarize(level, layer, items) for (level, layer), items in sort_groups(groups)]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        first = self.first_mismatch
        return {
            "agree": self.agree,
            "first_mismatch": None if first is None else {**first.as_dict(), "text": str(first)},
            "model": self.name,
            "subject": self.subject,
            "kernels": list(self.kernels),
            "checks": len(self.checks),
            "layers": self.rows(),
            "figures": self.figures
            and {k: spell_non_finite(v) for k, v in asdict(self.figures).items()},
        }

    def table(self) -> str:
        """The report as text."""
        title = f"{self.name} ({self.form})"
        if self.subject != "planish":
            title = f"{self.subject} on {title}"
        lines = [title, HEADER, "-" * len(HEADER)]
        lines += [*(format_row(row) for row in self.rows()), "-" * len(HEADER), LEGEND]
        if self.figures is not None:
            lines.append(describe(self.figures))
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """AGREE or DIFFER, and why, in one line."""
        first = self.first_mismatch
        if first is not None:
            return f"DIFFER: {first}"
        seen = {item.level for item in self.checks}
        levels = f"{len(seen)} level{'s' * (len(seen) > 1)}"
        silent = ", ".join(name for level, name in LEVELS.items() if level not in seen)
        rest = f"; not judged: {silent}" if silent else ""
        return f"AGREE: {len(self.checks)} checks on {levels}{rest}"


def describe(f: ModelFigures) -> str:
    """Level 3 in one line."""
    return (
        f"logits of {f.tokens} tokens: largest error {f.max_error:.2e}, mean {f.mean_error:.2e},"
        f" range {f.range:.1f}; KL mean {f.mean_kl:.2e}, max {f.max_kl:.2e};"
        f" same likeliest token {f.top1:.2%}"
    )


HEADER = (
    f"{'level':8}{'layer':>6}{'checks':>8}{'largest error':>15}{'of allowed':>12}"
    f"{'at ties':>9}{'cosine':>13}  closest to what is allowed"
)
LEGEND = """\
largest error: the largest |found - expected| among the checks of this line.
of allowed: how much of its tolerance, which is what rounding explains, the closest check used; \
above 100% they differ.
at ties: codes one step apart where x / scale is half way between two codes; no difference, \
counted as 100%.
cosine: between found and expected, the least of these checks."""
LEVELS = {1: "1 ops", 2: "2 layers", 3: "3 model"}
MOST_PERCENT = 999.0


def sort_groups(
    groups: dict[tuple[int, int | None], list[Check]],
) -> list[tuple[tuple[int, int | None], list[Check]]]:
    """By level, then by layer; checks outside the layers come first."""
    return sorted(groups.items(), key=lambda g: (g[0][0], -1 if g[0][1] is None else g[0][1]))


def spell_non_finite(value: Any) -> Any:
    """NaN and Inf as strings, which JSON lacks; other values unchanged."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def summarize(level: int, layer: int | None, items: Sequence[Check]) -> dict[str, Any]:
    """One row of the table."""
    worst = max(items, key=lambda item: item.worst)
    values = {
        "level": level,
        "layer": layer,
        "checks": len(items),
        "max_error": max(item.max_error for item in items),
        "worst": worst.worst,
        "ulps": worst.ulps,
        "off_by_one": sum(item.off_by_one for item in items),
        "cosine": min(item.cosine for item in items),
        "part": worst.part,
        "agree": all(item.agrees for item in items),
    }
    return {key: spell_non_finite(value) for key, value in values.items()}


def format_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    layer = "-" if row["layer"] is None else row["layer"]
    return (
        f"{LEVELS[row['level']]:8}{layer:>6}{row['checks']:>8}{float(row['max_error']):>15.2e}"
        f"{format_share(float(row['worst'])):>12}{row['off_by_one']:>9}"
        f"{float(row['cosine']):>13.9f}  {row['part']}"
    )


def format_share(share: float) -> str:
    """A share of a tolerance in percent, or "exceeded" far above it or if it is zero."""
    return f"{share:.1%}" if 100 * share <= MOST_PERCENT else "exceeded"
