"""A recipe in one word."""

from __future__ import annotations

import pytest

from planish.compare.quality.names import parse_recipe, parse_recipes
from planish.reference.errors import RecipeError
from planish.reference.quantize.recipe import recipe


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("W8A8", recipe("W8A8")),
        ("W4A16-g32", recipe("W4A16", group_size=32)),
        ("W4A16-g-1", recipe("W4A16", group_size=-1)),
        ("W4A8-g64-minmax", recipe("W4A8", group_size=64, rule="minmax")),
        ("W8A8-alpha0.8", recipe("W8A8", alpha=0.8)),
        ("O2-alpha1", recipe("O2", alpha=1.0)),
        ("W8A8-search", recipe("W8A8", alpha="search")),
        ("W4A8-per_token-float32", recipe("W4A8", activation="per_token", scale_dtype="float32")),
        ("naive-O1", recipe("naive", scheme="O1")),
        ("W4A16-gptq-no_act_order", recipe("W4A16", method="gptq", act_order=False)),
        ("W4A16-true_sequential-gptq", recipe("W4A16", method="gptq", true_sequential=True)),
        ("W4A16-g32-signround-light", recipe("W4A16-g32", method="signround", preset="light")),
        ("W4A16-rtn-search_range", recipe("W4A16", method="rtn", search_range=True)),
    ],
)
def test_a_name_is_the_recipe_with_its_changes(name, expected):
    assert parse_recipe(name) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("W8A9", ("W8A9", "did you mean W8A8?")),
        ("W4A8-g33", ("W4A8-g33", "group_size", "32")),
        ("W4A8-g32-g64", ("W4A8-g32-g64", "twice")),
        ("W4A8-minimax", ("W4A8-minimax", "'minimax'", "-minmax")),
        ("W8A8-alpha1.5", ("W8A8-alpha1.5", "alpha", "0..1")),
        ("W8A8-alpha", ("'alpha'",)),
        ("W4A8-g3.5", ("'g3.5'",)),
        ("W8A8-per_token", ("only valid with W4A8",)),
        ("W8A8-g32", ("W8A8-g32", "INT4")),
        ("naive-alpha0.5", ("naive", "without smoothing")),
        ("W4A16-best", ("preset", "no effect", "method rtn")),
        ("W4A16-rtn-no_act_order", ("act_order", "no effect", "method rtn")),
        ("W4A16-gptq-act_order-no_act_order", ("gives act_order twice",)),
        ("W4A16-no_gptq", ("'no_gptq'",)),
        ("", ("''",)),
    ],
)
def test_a_wrong_name_says_which_word_is_wrong(name, words):
    with pytest.raises(RecipeError) as problem:
        parse_recipe(name)
    assert all(word in str(problem.value) for word in words), str(problem.value)


def test_a_list_keeps_its_order_and_each_name_once():
    assert list(parse_recipes("W8A8, W4A8-g32,W8A8")) == ["W8A8", "W4A8-g32"]


def test_a_list_may_end_with_a_comma_and_names_something():
    assert list(parse_recipes("W8A8,")) == ["W8A8"]
    with pytest.raises(RecipeError, match="recipes: names no recipe"):
        parse_recipes(" ,")
