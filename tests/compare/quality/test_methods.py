"""The methods side by side: the cells of a grid, and tables of literal rows."""

import pytest

from planish.compare.quality.methods import Cell, Grid, describe_order, table, tables
from planish.reference.errors import RecipeError

SMALL = Grid(recipes=("W4A16",), group_sizes=(32, 128), rules=("signed",), methods=("rtn",))


def row(method, kl, **changes):
    place = {"recipe": "W4A16", "group_size": 32, "rule": "signed", "seed": 0}
    return {**place, "method": method, "kl": kl, "perplexity": 16.5, "top1": 91.25, **changes}


def grid_of(**changes):
    return Grid(**{**vars(SMALL), **changes})


def test_only_methods_that_are_trained_have_several_seeds():
    cells = [*grid_of(methods=("gptq", "awq+signround"), group_sizes=(32,), seeds=3).cells()]
    assert [(cell.method, cell.seed) for cell in cells] == [
        *(("gptq", 0), ("awq+signround", 0), ("awq+signround", 1), ("awq+signround", 2))
    ]


def test_a_cell_is_a_recipe_with_the_settings_that_its_method_reads():
    grid = grid_of(methods=("signround", "gptq"), preset="light", iterations=7)
    trained, closed = next(grid.cells()), [*grid.cells()][2]
    assert trained.name == "W4A16-g32-signed-signround"
    assert grid.facts_of("signround") == {"preset": "light", "iterations": 7}
    assert grid.facts_of("gptq") == {}
    made = Cell(**{**vars(trained), "seed": 2}).make_recipe(grid.facts_of("signround"))
    assert (made.settings.seed, made.settings.preset, made.settings.iterations) == (2, "light", 7)
    assert closed.make_recipe(grid.facts_of("gptq")).method == "gptq"


def test_words_of_settings_may_follow_a_method():
    cell = next(grid_of(methods=("gptq-no_act_order",)).cells())
    assert cell.make_recipe({}).settings.act_order is False
    assert Cell(**{**vars(cell), "method": "signround-light"}).make_recipe({}).settings.seed == 0


def test_a_recipe_that_there_is_not_is_refused():
    cell = next(grid_of(rules=("sined",)).cells())
    with pytest.raises(RecipeError, match="sined"):
        cell.make_recipe({})


def test_a_row_for_each_grid_and_a_column_for_each_method():
    rows = [row("rtn", 0.02), row("gptq", 0.01), row("rtn", 0.03, group_size=128)]
    assert table(rows, "kl").splitlines() == [
        "| | rtn | gptq |",
        "| --- | ---: | ---: |",
        "| W4A16 g=32 signed | 0.02000 | 0.01000 |",
        "| W4A16 g=128 signed | 0.03000 |  |",
    ]


def test_seeds_become_a_mean_with_its_deviation():
    rows = [row("signround", kl, seed=seed) for seed, kl in enumerate((0.01, 0.02, 0.03))]
    assert table(rows, "kl").splitlines()[2] == "| W4A16 g=32 signed | 0.02000 ± 0.01000 |"


def test_what_is_out_of_order_is_listed_with_its_numbers():
    rows = [row("rtn", 0.02), row("gptq", 0.03), row("signround", 0.01), row("awq", 0.02)]
    assert describe_order(rows).splitlines()[2:] == [
        "* W4A16 g=32 signed: gptq 0.03000, rtn 0.02000"
    ]
    assert describe_order(rows[2:]) == ""  # nothing to compare
    assert describe_order([rows[0], rows[3]]) == "KL: awq <= rtn in every row."
    assert all(words in tables(rows) for words in ("KL(float", "perplexity:", "91.2", "16.500"))
