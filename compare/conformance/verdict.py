"""What was found: a table, the first mismatch, a verdict."""

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
        return [summary(level, layer, items) for (level, layer), items in sorted_groups(groups)]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        first = self.first_mismatch
        return {
            "agree": self.agree,
            "first_mismatch": None if first is None else {**first.as_dict(), "text": str(first)},
            "model": self.name,
            "subject": self.subject,
            "kernels": list(self.kernels),
            "checks": len(self.checks),
            "layers": self.rows(),
            "figures": self.figures and {k: finite(v) for k, v in asdict(self.figures).items()},
        }

    def table(self) -> str:
        """For people."""
        title = f"{self.name} ({self.form})"
        if self.subject != "planish":
            title = f"{self.subject} on {title}"
        lines = [title, HEADER, "-" * len(HEADER)]
        lines += [*(as_line(row) for row in self.rows()), "-" * len(HEADER), LEGEND]
        if self.figures is not None:
            lines.append(in_words(self.figures))
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


def in_words(f: ModelFigures) -> str:
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


def sorted_groups(groups: dict[tuple[int, int | None], list[Check]]) -> Any:
    return sorted(groups.items(), key=lambda g: (g[0][0], -1 if g[0][1] is None else g[0][1]))


def finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def summary(level: int, layer: int | None, items: Sequence[Check]) -> dict[str, Any]:
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
    return {key: finite(value) for key, value in values.items()}


def as_line(row: dict[str, Any]) -> str:
    """A row of the table as people read it."""
    layer = "-" if row["layer"] is None else row["layer"]
    return (
        f"{LEVELS[row['level']]:8}{layer:>6}{row['checks']:>8}{float(row['max_error']):>15.2e}"
        f"{percent(float(row['worst'])):>12}{row['off_by_one']:>9}"
        f"{float(row['cosine']):>13.9f}  {row['part']}"
    )


def percent(share: float) -> str:
    """A share of a tolerance, or a word where it is far exceeded or the tolerance is zero."""
    return f"{share:.1%}" if 100 * share <= MOST_PERCENT else "exceeded"
