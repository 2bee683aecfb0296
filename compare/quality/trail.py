"""The trail of an automatic search: what was tried, what was chosen, and which linears cost what.

quantization_report.json has all of it, quantization_report.md is what a person reads first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from planish.compare.quality.auto import Outcome
from planish.compare.quality.loss import METRICS
from planish.compare.quality.size import stored_bits
from planish.compare.quality.trial import Goal, Trial
from planish.reference.scheme import Scheme

COLUMNS = {
    "bits": "a weight of the blocks' linears, scales and zero points counted",
    "size": "of the weights' files",
    "perplexity": "of the validation text",
    "KL": "mean KL(float || recipe) of the next token in nats",
    "top-1": "how often both models find the same next token likeliest",
    "loss": "against float by the metric, ± its standard error",
    "s": "seconds to quantize and to measure",
}
HEADER = f"| recipe | {' | '.join(COLUMNS)} |\n| --- | {' | '.join(['---:'] * len(COLUMNS))} |"
MOST_LINEARS = 20  # in the Markdown


@dataclass(frozen=True, kw_only=True)
class About:
    """What a search was asked for, in words and numbers, for the report."""

    model: str
    recipe: str
    calibration: str
    validation: str


def table_row(trial: Trial, metric: str) -> str:
    """One line of the table."""
    loss = f"{format_loss(trial.loss, metric)} ± {format_loss(trial.error, metric)}"
    cells = (
        trial.name,
        f"{trial.bits:.3f}",
        f"{trial.size / 1e6:.2f} MB",
        f"{trial.perplexity:.3f}",
        f"{trial.mean_kl:.5f}",
        f"{trial.top1:.1%}",
        f"{loss}{' ✓' if trial.within else ''}",
        f"{trial.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def format_loss(value: float, metric: str) -> str:
    """2.31 %, or a number of nats."""
    return f"{value:.5f}" if metric == "kl" else f"{100 * value:.2f} %"


def verdict(outcome: Outcome, goal: Goal) -> str:
    """What was found, in one line."""
    trial = outcome.chosen.trial
    loss = f"{format_loss(trial.loss, goal.metric)} ± {format_loss(trial.error, goal.metric)}"
    start = f"{trial.name}: {trial.bits:.3f} bits a weight, {goal.metric} loss {loss}"
    if goal.tolerance is None:
        return f"{start}, the least within {goal.budget:g} bits"
    asked = format_loss(goal.tolerance, goal.metric)
    if trial.within:
        return f"{start}, within {asked}"
    missing = format_loss(trial.bound - goal.tolerance, goal.metric)
    return f"{start}: loss + error miss {asked} by {missing}; nothing that was tried has less"


def report_values(outcome: Outcome, goal: Goal, about: About) -> dict[str, Any]:
    """The report as JSON values."""
    chosen = outcome.chosen.trial
    missed = None if goal.tolerance is None else max(0.0, chosen.bound - goal.tolerance)
    return {
        **asdict(about),
        "float_perplexity": chosen.float_perplexity,
        "metric": goal.metric,
        "metric_definition": METRICS[goal.metric],
        "tolerance": goal.tolerance,
        "budget": goal.budget,
        "verdict": verdict(outcome, goal),
        "within": chosen.within,
        "missed_by": missed,
        "chosen": asdict(chosen),
        "trials": [asdict(trial) for trial in outcome.trials],
        "left_out": outcome.left_out,
        "columns": COLUMNS,
        "linears": linear_values(outcome),
    }


def linear_values(outcome: Outcome) -> list[dict[str, Any]]:
    """Every quantized linear: its scheme, and what the recipe's rounding of it alone would cost."""
    model = outcome.chosen.model
    base = model.base
    values = []
    for (layer, part), (costs, errors) in outcome.sensitivities.items():
        rows, cols, count = base.sizes[layer, part]
        scheme = model.schemes[layer, part]
        values.append(
            {
                "name": base.source.prefix(part, layer),
                "layer": layer,
                "part": part,
                "weights": rows * cols * count,
                "scheme": scheme_words(scheme),
                "bits": stored_bits(model, (layer, part)) / (rows * cols * count),
                "widened": (layer, part) in model.changes,
                "cost": costs[0],
                "relative_error": errors[0],
            }
        )
    return values


def scheme_words(scheme: Scheme | None) -> str:
    """int8, or float."""
    return "float" if scheme is None else str(scheme)


def report_text(values: dict[str, Any], trials: Sequence[Trial], pictures: Sequence[str]) -> str:
    """The report as Markdown; pictures: names of the files beside it."""
    metric = values["metric"]
    rows = "\n".join(table_row(trial, metric) for trial in trials)
    legend = "\n".join(f"* {name}: {meaning}" for name, meaning in COLUMNS.items())
    out = values["left_out"]
    skipped = "".join(f"\n* left out: {name}: {why}" for name, why in out.items())
    shown = "".join(f"\n![{name}]({name})\n" for name in pictures)
    return f"""# How this model was quantized

{values["verdict"]}

* recipe: {values["recipe"]}, of {values["model"]}
* metric: {metric}, {values["metric_definition"]}
* calibration: {values["calibration"]}
* validation: {values["validation"]}; float perplexity {values["float_perplexity"]:.4f}{skipped}
{shown}
## What was tried

{HEADER}
{rows}

{legend}

## Which linears cost what

The {MOST_LINEARS} most sensitive: cost is what rounding that linear alone by the recipe costs the
loss (1/2 the squares of output error times gradient, nats per token), and error the squared error
of its output relative to the output's square. quantization_report.json has all.

{linear_table(values["linears"])}
"""


def linear_table(linears: Sequence[dict[str, Any]]) -> str:
    """The most sensitive linears as a table."""
    rows = ["| linear | scheme now | cost | error |", "| --- | --- | ---: | ---: |"]
    for one in sorted(linears, key=lambda one: -one["cost"])[:MOST_LINEARS]:
        error = "" if one["relative_error"] != one["relative_error"] else one["relative_error"]
        shown = f"{error:.2e}" if error != "" else ""
        rows.append(f"| {one['name']} | {one['scheme']} | {one['cost']:.2e} | {shown} |")
    return "\n".join(rows)
