"""The rows of a study as a Markdown table, and the meaning of each column in a line."""

from __future__ import annotations

from collections.abc import Sequence

from planish.compare.quality.measure import Quality

COLUMNS = {
    "perplexity": "of the text, ± its standard error; lower is better",
    "difference": "from float's perplexity, ± its standard error; paired, on the same windows",
    "KL": "how far the next token's distribution moved: mean KL(float || recipe) in nats",
    "top-1": "how often both models find the same next token likeliest",
    "size": "of the weights' files",
    "tokens/s": "new tokens one by one, here and now; a model of a few MB measures overhead only",
}
HEADER = f"| recipe | {' | '.join(COLUMNS)} |\n| --- | {' | '.join(['---:'] * len(COLUMNS))} |"


def legend() -> str:
    """The meaning of each column, one a line."""
    width = max(map(len, COLUMNS))
    return "\n".join(f"{name:{width}}  {meaning}" for name, meaning in COLUMNS.items())


def describe_protocol(text: str, windows: Sequence[Sequence[int]]) -> str:
    """What was measured on, in the words of `planish perplexity`."""
    count, length = len(windows), len(windows[0])
    plural = "s" if count > 1 else ""
    return f"{text}: {count} window{plural} of {length} tokens"


def table_row(row: Quality) -> str:
    """One line of the table."""
    cells = (
        row.recipe,
        f"{row.perplexity:.3f} ± {row.standard_error:.3f}",
        f"{row.delta:+.3f} ± {row.delta_error:.3f}",
        f"{row.mean_kl:.5f}",
        f"{row.top1:.1%}",
        f"{row.size / 1e6:.2f} MB",
        f"{row.tokens_per_second:.0f}",
    )
    return f"| {' | '.join(cells)} |"
