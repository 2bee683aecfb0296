"""The table, the verdict and the report of a search: literal numbers."""

from types import SimpleNamespace

import pytest

from planish.compare.quality.trail import format_loss, linear_table, table_row, verdict
from planish.compare.quality.trial import Goal, Trial

TRIAL = Trial(
    name="W4A16-gptq",
    bits=4.125,
    size=4_550_000,
    loss=0.0089,
    error=0.0009,
    perplexity=9.5341,
    float_perplexity=9.45,
    mean_kl=0.00651,
    top1=0.954,
    seconds=12.4,
    within=True,
)


def outcome_of(**changes):
    values = {**vars(TRIAL), **changes}
    return SimpleNamespace(chosen=SimpleNamespace(trial=Trial(**values)))


def test_a_row_shows_bits_size_and_the_loss_with_its_error():
    cells = [cell.strip() for cell in table_row(TRIAL, "perplexity").strip("|").split("|")]
    assert cells == [
        *("W4A16-gptq", "4.125", "4.55 MB", "9.534", "0.00651", "95.4%"),
        *("0.89 % ± 0.09 % ✓", "12"),
    ]


@pytest.mark.parametrize(
    ("metric", "text"), [("perplexity", "1.23 %"), ("top1", "1.23 %"), ("kl", "0.01230")]
)
def test_a_loss_is_in_its_metrics_unit(metric, text):
    assert format_loss(0.0123, metric) == text


@pytest.mark.parametrize(
    ("goal", "changes", "words"),
    [
        (Goal(), {}, "loss 0.89 % ± 0.09 %, within 1.00 %"),
        (Goal(tolerance=0.005), {"within": False}, "loss + error miss 0.50 % by 0.48 %"),
        (Goal(tolerance=None, budget=4.5), {"within": False}, "the least within 4.5 bits"),
    ],
)
def test_the_verdict_says_whether_and_by_how_much(goal, changes, words):
    found = verdict(outcome_of(**changes), goal)
    assert found.startswith("W4A16-gptq: 4.125 bits a weight, perplexity loss") and words in found


def test_the_most_sensitive_linears_come_first_and_experts_have_no_error():
    linears = [
        {"name": "a", "scheme": "int8", "cost": 1e-5, "relative_error": 0.25},
        {"name": "b", "scheme": "float", "cost": 3e-2, "relative_error": float("nan")},
    ]
    rows = linear_table(linears).splitlines()[2:]
    assert rows == ["| b | float | 3.00e-02 |  |", "| a | int8 | 1.00e-05 | 2.50e-01 |"]
