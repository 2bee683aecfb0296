"""The figures of a row: literal small numbers, and against the definitions of SPEC 8."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planish.compare.quality import measure, table
from planish.compare.quality.names import parse_recipes
from planish.reference.engine import Engine
from planish.reference.errors import PromptError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.evaluate import agreement, perplexity

WINDOWS = [[5, 9, 70, 33, 8, 120, 64, 7], [90, 4, 4, 61, 12, 99, 3, 17]]


def test_the_difference_is_paired_token_by_token():
    """What both models find hard makes each perplexity uncertain, and the difference not."""
    float_nll = np.array([1.0, 3.0])
    delta, error = measure.pair_difference(float_nll + 0.1, float_nll)
    assert delta == pytest.approx(math.exp(2.1) - math.exp(2.0))
    # d = P (nll + .1) - P' nll with P = e^2.1, P' = e^2: its values differ by 2 (P - P'), std half
    assert error == pytest.approx((math.exp(2.1) - math.exp(2.0)) / math.sqrt(2))
    assert measure.pair_difference(float_nll, float_nll) == (0, 0)


def test_a_difference_that_is_not_shared_is_uncertain():
    _, error = measure.pair_difference(np.array([3.0, 1.0]), np.array([1.0, 3.0]))
    assert error == pytest.approx(2 * math.exp(2.0) / math.sqrt(2))


def test_parts_of_different_lengths_count_by_their_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, measure.ROWS + 7, 11)).astype(np.float32)
    parts = measure.compare_logits(a, b)
    rows = [count for count, _ in parts]
    assert rows == [measure.ROWS, 7]
    whole = agreement(a, b)
    for name in ("mean_kl", "top1"):
        found = np.average([getattr(part, name) for _, part in parts], weights=rows)
        assert found == pytest.approx(getattr(whole, name))


@pytest.fixture
def study(tiny_llama, tmp_path):
    return measure.Study(
        source=open_checkpoint(tiny_llama),
        windows=WINDOWS,
        samples=[np.arange(3, 40, dtype=np.int32)],
        directory=tmp_path,
        keep=False,
        open_engine=Engine,
    )


def test_a_row_is_what_the_definitions_say(study):
    rows = {
        row.recipe: row for row in measure.measure_recipes(study, parse_recipes("W8A8,W4A16-g32"))
    }
    assert list(rows) == ["float", "W8A8", "W4A16-g32"]
    flat = [token for window in WINDOWS for token in window]
    engine = Engine(study.source)
    exact = perplexity(engine.losses, flat, len(WINDOWS[0]))
    assert rows["float"].perplexity == pytest.approx(exact.perplexity)
    assert rows["float"].standard_error == pytest.approx(exact.standard_error)
    for row in rows.values():
        assert row.delta == pytest.approx(row.perplexity - rows["float"].perplexity)
    assert (rows["float"].mean_kl, rows["float"].top1) == (0, 1)
    assert 0 < rows["W8A8"].mean_kl < rows["W4A16-g32"].mean_kl
    assert rows["W4A16-g32"].size < rows["W8A8"].size < rows["float"].size
    assert list(study.directory.iterdir()) == []


def test_logits_that_are_not_kept_are_computed_again(study, monkeypatch):
    engine = Engine(study.source)
    kept = measure.Baseline(engine, WINDOWS)
    monkeypatch.setattr(measure, "CACHED_BYTES", 0)
    again = measure.Baseline(engine, WINDOWS)
    assert not again._cached and len(kept._cached) == 2
    np.testing.assert_array_equal(again.logits(1), kept.logits(1))


def test_nan_is_an_error_that_names_the_recipe(study):
    class Broken(Engine):
        def forward(self, tokens):
            return np.full((len(tokens), self.config.vocab_size), np.nan, np.float32)

    baseline = measure.Baseline(Engine(study.source), WINDOWS)
    opened = Broken(study.source), study.source.path
    with pytest.raises(PromptError, match="W8A8.*NaN"):
        measure.measure("W8A8", opened, baseline)


def test_a_row_of_the_table_has_a_cell_for_each_column(study):
    (row,) = measure.measure_recipes(study, {})
    assert table.table_row(row).count("|") == table.HEADER.splitlines()[0].count("|")
    assert table.table_row(row).startswith("| float | ")
    assert "| +0.000 ± 0.000 | 0.00000 | 100.0% |" in table.table_row(row)
