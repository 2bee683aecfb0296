"""What lint says: one row for each rule that fired, as an object for JSON and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from planish.compare.lint.against import LinearError
from planish.compare.lint.rules import RULES, SEVERITIES, Finding
from planish.compare.lint.run import Linted
from planish.reference.errors import one_line

WORST = 10  # linears of --against that the text names
RESCALED = (
    "rescaled: smoothing or AWQ folded factors into the weight; its error is what the best"
    " factors of inputs and outputs leave"
)


def describe(linted: Linted, against: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that lint found, as one object."""
    rows = group_findings(linted.findings)
    counts = Counter(row["severity"] for row in rows)
    return {
        "model": str(linted.opened.path),
        "format": linted.opened.format,
        "made_by": linted.made_by,
        "linears": linted.linears,
        "errors": counts["error"],
        "warnings": counts["warning"],
        "notes": counts["note"],
        "findings": rows,
        "saturation": linted.saturation,
        "against": against,
    }


def group_findings(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """One row for each rule and detail, the worst first; `where` has every name."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.detail), []).append(finding)
    rows = [one_row(rule, detail, group) for (rule, detail), group in groups.items()]
    return sorted(rows, key=lambda row: SEVERITIES.index(row["severity"]))


def one_row(name: str, detail: str, group: list[Finding]) -> dict[str, Any]:
    """The row of findings that share a rule and a detail."""
    rule = RULES[name]
    count, total = sum(one.count for one in group), sum(one.total for one in group)
    return {
        "severity": rule.severity,
        "rule": name,
        "where": [one.where for one in group],
        "what": rule.what.format(count=f"{count:,}", total=f"{total:,}", detail=detail),
        "breaks": list(rule.breaks),
        "fix": rule.fix,
    }


def describe_errors(
    path: str, errors: Iterable[LinearError], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """The object of --against, the worst linear first."""
    ordered = sorted(errors, key=lambda one: -one.error)
    return {
        "model": path,
        "linears": [
            {"linear": one.prefix, "error": one.error, "rescaled": one.rescaled} for one in ordered
        ],
        "skipped": dict(skipped),
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """The same as text."""
    by = f" by {facts['made_by']}" if facts["made_by"] else ""
    counts = ", ".join(counted(facts[f"{name}s"], name) for name in SEVERITIES)
    linears = counted(facts["linears"], "quantized linear")
    lines = [f"{facts['model']}: {facts['format']}{by}, {linears}: {counts}"]
    for row in facts["findings"]:
        lines += ["", *row_lines(row)]
    if facts["against"] is not None:
        lines += ["", *error_lines(facts["against"])]
    return "\n".join(map(clean, lines))


def clean(line: str) -> str:
    """A line whose words come from a file, its indentation kept."""
    indent = len(line) - len(line.lstrip(" "))
    return " " * indent + one_line(line)


def row_lines(row: Mapping[str, Any]) -> list[str]:
    """A row as a paragraph: severity and what, where, which programs it breaks, the fix."""
    names = row["where"]
    where = names[0] if len(names) == 1 else f"{len(names)} {noun_of(row)}, e.g. {names[0]}"
    lines = [f"{row['severity']}: {row['what']}", f"{'':8} in {where} ({row['rule']})"]
    if row["breaks"]:
        lines.append(f"{'':8} breaks: {'; '.join(row['breaks'])}")
    if row["fix"] != "nothing":
        lines.append(f"{'':8} fix: {row['fix']}")
    return lines


def noun_of(row: Mapping[str, Any]) -> str:
    """linears, tensors or layers, by the rule."""
    family = row["rule"].partition("-")[0]
    return {"tensor": "tensors", "bias": "tensors", "fused": "layers"}.get(family, "linears")


def error_lines(against: Mapping[str, Any]) -> list[str]:
    """The worst linears against the float model."""
    found = against["linears"]
    head = f"relative error of {counted(len(found), 'linear')} against {against['model']}"
    lines = [f"{head}, the worst first:"]
    for one in found[:WORST]:
        mark = ", rescaled" if one["rescaled"] else ""
        lines.append(f"  {one['error']:.5f} {one['linear']}{mark}")
    if any(one["rescaled"] for one in found):
        lines.append(f"  {RESCALED}")
    reasons = Counter(against["skipped"].values())
    lines += [f"  not compared: {count}, {reason}" for reason, count in reasons.items()]
    return lines


def counted(count: int, noun: str) -> str:
    """1 error, 2 errors."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
