"""Patterns that match in time pass, and those that could take for ever are refused by name."""

from __future__ import annotations

import re

import pytest

from planish.reference.errors import RecipeError
from planish.reference.quantize.patterns import (
    LONGEST_NAME,
    LONGEST_PATTERN,
    check_pattern,
    count_ways,
)
from planish.reference.quantize.recipe import recipe

ENDLESS = [
    r"(a+)+b",
    r"(a|a)*b",
    r"(?:a{1,30}){1,30}b",
    r"(\w+\.)*x",
    "a?" * 40 + "a" * 40,
    ".*.*.*.*x",
    r"(?=(a+)+b)",
    r"(a)?(?(1)(?:b+)+c|d)",
    r"(?>(a*)*)b",
    r"(?:a*?)*?b",
]
USUAL = [
    r".*self_attn\.(q|k|v|o)_proj.*",
    r"model\.layers\.(?:[0-9]|1[0-9]|2[0-7])\..*",
    r".*mlp\.experts\.(\d+)\.(gate|up)_proj$",
    r"(?!.*lm_head).*\.down_proj",
    r"(?:model\.)?layers\.[^.]{1,3}\.down_proj",
    r"(.*\.)?down_proj(?:\.weight)?$",
    r"(?:a{3}){3}",
]


@pytest.mark.parametrize("expression", ENDLESS)
def test_an_expression_that_could_take_too_long_is_refused(expression):
    re.compile(expression)
    with pytest.raises(RecipeError, match="ignore: a regular expression that can take too long; e"):
        check_pattern(f"re:{expression}", "ignore")


@pytest.mark.parametrize("expression", USUAL)
def test_expressions_as_people_write_them_are_accepted(expression):
    check_pattern(f"re:{expression}", "ignore")


@pytest.mark.parametrize(
    ("expression", "ways"),
    [
        ("abc", 1),
        ("a|b|c.", 3),
        ("a*", LONGEST_NAME + 1),
        ("a+", LONGEST_NAME),
        ("a?b{2,4}", 6),
        ("(?:a|bc){2,3}", 4 + 8),
        ("(?=a|bc)(x)(?<!y|zz)", 4),
    ],
)
def test_ways_multiply_in_a_row_and_add_up_over_alternatives(expression, ways):
    assert count_ways(expression) == ways


def test_recipes_refuse_them_at_once():
    for given in ({"ignore": ("re:(a+)+b",)}, {"scheme": "re:(a+)+b=W8A16"}):
        with pytest.raises(RecipeError, match="can take too long"):
            recipe("W4A16", **given)


def test_a_pattern_of_many_characters_is_refused():
    check_pattern("x" * LONGEST_PATTERN, "scheme")
    with pytest.raises(RecipeError, match="scheme: a pattern too long; expected at most 2000"):
        check_pattern("x" * (LONGEST_PATTERN + 1), "scheme")
