"""The recipes by name: what each one means, what is refused, what is written down."""

import pytest

from planish.reference.errors import RecipeError
from planish.reference.quantize.recipe import RECIPES, Recipe, needs_calibration, recipe


@pytest.mark.parametrize(
    ("name", "bits", "granularity", "activation", "alpha"),
    [
        ("float", None, "per_channel", "float", None),
        ("W8A8", 8, "per_channel", "per_token", 0.5),
        ("O1", 8, "per_tensor", "per_token", 0.5),
        ("O2", 8, "per_tensor", "per_tensor", 0.5),
        ("O3", 8, "per_tensor", "static", 0.5),
        ("naive", 8, "per_tensor", "per_tensor", None),
        ("W8A16", 8, "per_channel", "float", None),
        ("W4A16", 4, "per_channel", "float", None),
        ("W4A8", 4, "per_channel", "per_group", None),
    ],
)
def test_recipe_is_the_spec_s_row(name, bits, granularity, activation, alpha):
    found = recipe(name)
    assert found == RECIPES[name] and (found.name, found.head) == (name, "float")
    assert (found.bits, found.granularity) == (bits, granularity)
    assert (found.activation, found.alpha) == (activation, alpha)
    assert (found.rule, found.group_size, found.scale_dtype) == ("signed", 128, "float16")


def test_there_are_no_other_recipes():
    assert list(RECIPES) == "float W8A8 O1 O2 O3 naive W8A16 W4A16 W4A8".split()


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("W8A9", "W8A8"), ("w4a16", "W4A16"), ("nave", "naive"), ("flat", "float")],
)
def test_a_misspelt_recipe_is_answered_with_the_nearest(typed, nearest):
    with pytest.raises(RecipeError, match=rf"did you mean {nearest}\?\), found '{typed}'"):
        recipe(typed)


def test_naive_takes_the_scheme_of_another():
    found = recipe("naive", scheme="O3")
    assert (found.name, found.activation, found.alpha) == ("naive", "static", None)
    assert needs_calibration(found) and not needs_calibration(recipe("naive"))


def test_calibration_is_needed_to_smooth_and_for_static_scales_only():
    needy = {name for name in RECIPES if needs_calibration(recipe(name))}
    assert needy == {"W8A8", "O1", "O2", "O3"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("W8A8", {"alpha": 1.1}, "alpha: bad value"),
        ("W8A8", {"alpha": -0.1}, "alpha: bad value"),
        ("W8A8", {"alpha": float("nan")}, "alpha: bad value"),
        ("W8A8", {"alpha": "serch"}, "did you mean search"),
        ("naive", {"alpha": 0.5}, "naive means without"),
        ("W8A8", {"group_size": 32}, "group_size: has no effect"),
        ("W8A8", {"rule": "minmax"}, "rule: has no effect"),
        ("W4A16", {"group_size": 0}, "group_size: unknown; expected one of -1, 32"),
        ("W4A16", {"group_size": 48}, "group_size: unknown"),
        ("W4A16", {"rule": "minmx"}, "did you mean minmax"),
        ("W4A16", {"scale_dtype": "bfloat16"}, "scale_dtype: unknown"),
        ("W4A16", {"method": "gptq"}, "method: unknown"),
        ("W8A8", {"head": "int5"}, "lm_head: unknown"),
        ("W8A8", {"activation": "per_group"}, "activation: unknown"),
        ("W4A8", {"activation": "static"}, "activation: unknown"),
        ("W4A8", {"smooth_outputs": True}, "smooth_outputs: has no effect"),
        ("W8A8", {"scheme": "O1"}, "scheme: goes with the recipe naive only"),
        ("naive", {"scheme": "O4"}, "scheme: unknown; expected one of W8A8, O1, O2, O3"),
    ],
)
def test_a_value_out_of_range_or_without_effect_is_refused(name, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(name, **changes)


def test_changes_are_taken_and_none_means_not_given():
    found = recipe("W4A8", group_size=32, rule="minmax", activation="per_token", alpha=None)
    assert (found.group_size, found.rule, found.activation) == (32, "minmax", "per_token")
    assert found.alpha is None
    assert recipe("W8A8", head="int4", group_size=64).group_size == 64


def test_linears_are_ignored_by_pattern():
    found = Recipe(name="W8A8", bits=8, ignore=("*.o_proj", "model.layers.1.*"))
    assert found.ignores("model.layers.0.self_attn.o_proj")
    assert found.ignores("model.layers.1.mlp.up_proj")
    assert not found.ignores("model.layers.10.mlp.up_proj")


def test_description_holds_the_fields_that_count():
    described = recipe("W8A8", ignore=("a*",)).describe()
    assert described["alpha"] == 0.5 and described["ignore"] == ["a*"]
    assert not {"rule", "group_size", "scale_dtype"} & set(described)
    described = recipe("W4A16").describe()
    assert described["rule"] == "signed" and described["group_size"] == 128
    assert recipe("W8A8", head="int4").describe()["group_size"] == 128
