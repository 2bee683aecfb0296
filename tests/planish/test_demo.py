"""What a newcomer reads first: the demo's table, and the text that both engines write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish import demo, demo_formats, pocket
from planish.compare.quality.names import parse_recipes
from planish.compare.quality.table import HEADER, legend, table_row
from planish.fast.native.library import choose_kernels
from planish.pocket.outliers import write_outlier_model
from planish.reference.engine import Engine
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from tests.planish.tables import assert_same_row, rows_in

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
QUALITY = README.partition("## Quality")[2]  # the table of the model with outlier channels
FRESH = "O3,W4A8-g32-alpha0.5"
PLAIN = BENCHMARKS.partition("As it was trained")[2]


def test_the_prompt_ends_where_the_tokenizer_cuts_words():
    assert demo.PROMPT.rstrip() == demo.PROMPT


def test_the_embedded_model_writes_a_function_and_not_a_column_of_comments():
    checkpoint = open_checkpoint(pocket.MODEL)
    text = demo.continue_prompt(checkpoint, Engine(checkpoint))
    assert text.startswith('\n    """')
    assert "return path" in text and "#" not in text


@pytest.mark.parametrize(
    ("shown", "recipes"), [(QUALITY, demo.OUTLIER_RECIPES), (PLAIN, demo.PLAIN_RECIPES)]
)
def test_the_tables_have_the_rows_and_columns_of_the_demo(shown, recipes):
    assert list(rows_in(shown)) == ["float", *parse_recipes(recipes)]
    assert HEADER in shown


@pytest.mark.whole
def test_a_model_comes_back_from_other_formats_with_the_same_logits(tmp_path):
    source, chosen = tmp_path / "quantized", parse_recipes(demo.FOR_OTHERS)[demo.FOR_OTHERS]
    with CheckpointWriter(source, pocket.MODEL) as writer:
        quantize_checkpoint(open_checkpoint(pocket.MODEL), writer, chosen, None)
    quantized = open_checkpoint(source)
    tokens = demo.held_out_tokens(quantized)[:8]
    rows = [*demo_formats.convert_there_and_back(quantized, tmp_path / "c", tokens, native=False)]
    assert len(rows) == 1 + 2 * len(demo_formats.FORMATS)
    assert all("the same to the bit" in row for row in rows[1:])


def test_logits_that_differ_are_shown():
    words = demo_formats.compare_logits(np.zeros(3), np.array([0, 0.5, 0]))
    assert words == "DIFFERENT, by up to 5.00e-01"


def test_benchmarks_explain_the_columns_as_the_command_does():
    assert legend() in BENCHMARKS


@pytest.mark.whole
def test_rows_of_the_readme_are_those_of_a_fresh_run(kernels, tmp_path):
    """A row of static scales and one of INT4 weights: all of them take minutes."""
    source = tmp_path / "pocket-outliers"
    write_outlier_model(pocket.MODEL, source)
    native = choose_kernels("auto", None)
    study = replace(demo.study_of(open_checkpoint(source), native), directory=tmp_path / "rows")
    fresh = rows_in("\n".join(map(table_row, demo.rows_of(study, FRESH))))
    shown = rows_in(QUALITY)
    assert list(fresh) == ["float", *parse_recipes(FRESH)]
    for recipe, numbers in fresh.items():
        assert_same_row(recipe, shown[recipe], numbers)
