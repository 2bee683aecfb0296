"""The recipes by name: what each one means, what is refused, what is written down."""

import json

import pytest

from planish.reference.errors import RecipeError
from planish.reference.quantize.recipe import RECIPES, Smoothing, needs_calibration, recipe
from planish.reference.quantize.spelling import SCHEMES, parse_name
from planish.reference.scheme import int4, int8, scheme_values


@pytest.mark.parametrize(
    ("name", "bits", "granularity", "activation", "alpha"),
    [
        ("float", None, None, None, None),
        ("W8A8", 8, "per_channel", "per_token", (0.5, False)),
        ("O1", 8, "per_tensor", "per_token", (0.5, False)),
        ("O2", 8, "per_tensor", "per_tensor", (0.5, False)),
        ("O3", 8, "per_tensor", "static", (0.5, False)),
        ("naive", 8, "per_tensor", "per_tensor", None),
        ("W8A16", 8, "per_channel", "float", None),
        ("W4A16", 4, "per_group", "float", None),
        ("W4A8", 4, "per_group", "per_group", None),
    ],
)
def test_recipe_is_the_spec_s_row(name, bits, granularity, activation, alpha):
    found = recipe(name)
    assert found == RECIPES[name] and found.name == name and found.scheme_of("lm_head") is None
    scheme, smoothing = found.default, found.smoothing
    assert (None if smoothing is None else (smoothing.alpha, smoothing.outputs)) == alpha
    if bits is None:
        assert scheme is None and not found.quantizes
        return
    assert (scheme.bits, scheme.granularity, scheme.activation) == (bits, granularity, activation)
    assert scheme.symmetric and found.rule == "signed" and found.method == "rtn"
    if bits == 4:
        assert (scheme.group_size, scheme.scale_dtype) == (128, "float16")


def test_there_are_no_other_recipes():
    assert list(RECIPES) == "float W8A8 O1 O2 O3 W8A16 W4A16 W4A8 naive".split()


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("W8A9", "W8A8"), ("w4a16", "W4A16"), ("nave", "naive"), ("flat", "float")],
)
def test_a_misspelt_recipe_is_answered_with_the_nearest(typed, nearest):
    with pytest.raises(RecipeError, match=rf"did you mean {nearest}\?\), found '{typed}'"):
        recipe(typed)


def test_naive_takes_the_scheme_of_another():
    found = recipe("naive", scheme="O3")
    assert (found.name, found.default, found.smoothing) == ("naive", SCHEMES["O3"], None)
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
        ("float", {"method": "gptq"}, "method: has no effect without quantized weights"),
        ("W4A16", {"group_size": 0}, "group_size: unknown; expected one of -1, 32"),
        ("W4A16", {"group_size": 48}, "group_size: unknown"),
        ("W4A16", {"rule": "minmx"}, "did you mean minmax"),
        ("W4A16", {"scale_dtype": "bfloat16"}, "scale_dtype: unknown"),
        ("W4A16", {"method": "gtpq"}, "did you mean gptq"),
        ("W8A8", {"head": "int5"}, "lm_head: unknown"),
        ("W8A8", {"activation": "per_group"}, "activation: unknown"),
        ("W4A8", {"activation": "static"}, "activation: unknown"),
        ("W4A8", {"smooth_outputs": True}, "smooth_outputs: has no effect"),
        ("W8A8", {"scheme": "O1"}, "scheme: is only valid with --recipe naive"),
        ("naive", {"scheme": "O4"}, "scheme: unknown; expected one of W8A8, O1, O2, O3"),
    ],
)
def test_a_value_out_of_range_or_without_effect_is_refused(name, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(name, **changes)


def test_changes_are_taken_and_none_means_not_given():
    found = recipe("W4A8", group_size=32, rule="minmax", activation="per_token", alpha=None)
    assert found.default == int4(32, symmetric=False, activation="per_token")
    assert found.smoothing is None
    assert recipe("W8A8", head="int4", group_size=64).scheme_of("lm_head") == int4(64)
    assert recipe("W8A8", alpha=0.7, smooth_outputs=True).smoothing == Smoothing(
        alpha=0.7, outputs=True
    )
    assert recipe("W4A16", rule="absmax").rule == "absmax"
    with pytest.raises(TypeError, match="has no bits"):
        recipe("W8A8", bits=4)


def test_the_first_pattern_that_matches_wins():
    found = recipe(
        "W4A16", ignore=("layers.0",), scheme="*.down_proj=W8A16,lm_head=W4A16-g32,o_proj=float"
    )
    scheme = found.scheme_of
    assert scheme("model.layers.1.mlp.down_proj") == SCHEMES["W8A16"]
    assert scheme("model.layers.0.mlp.down_proj") is scheme("model.layers.3.attn.o_proj") is None
    assert scheme("model.layers.10.mlp.up_proj") == int4(128) and scheme("lm_head") == int4(32)


SPELLED = [
    ("a=W8A8", {"a": SCHEMES["W8A8"]}),
    ("a=O3,b=float", {"a": SCHEMES["O3"], "b": None}),
    ("a=W4A16-g-1", {"a": int4(-1)}),
    ("a=W4A8-g64-minmax", {"a": int4(64, symmetric=False, activation="per_group")}),
    ("re:layers.{1,2}.x=W8A16,b=W8A8", {"re:layers.{1,2}.x": int8(), "b": SCHEMES["W8A8"]}),
    ("re:(?=a),b=W8A16", {"re:(?=a),b": int8()}),
]


@pytest.mark.parametrize(("text", "expected"), SPELLED)
def test_schemes_are_spelled_by_pattern(text, expected):
    found = recipe("W8A16", scheme=text)
    assert dict(found.schemes[: len(expected)]) == expected


def test_a_scheme_without_options_of_its_own_has_the_recipe_s():
    found = recipe("W8A16", scheme="a=W4A16,b=W4A8-g128", group_size=32, rule="minmax")
    assert found.scheme_of("a") == int4(32, symmetric=False)
    assert found.scheme_of("b") == int4(128, symmetric=False, activation="per_group")


def test_schemes_come_from_a_file_or_a_mapping(tmp_path):
    given = {"a": "W4A16-g32", "b": None, "c": scheme_values(SCHEMES["O3"])}
    (tmp_path / "s.json").write_text(json.dumps(given))
    for scheme in (given, str(tmp_path / "s.json")):
        found = recipe("W8A16", scheme=scheme)
        assert found.schemes[:3] == (("a", int4(32)), ("b", None), ("c", SCHEMES["O3"]))
    (tmp_path / "s.json").write_text("[")
    with pytest.raises(RecipeError, match="s.json: is not JSON"):
        recipe("W8A16", scheme=str(tmp_path / "s.json"))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("a=W8A9", "scheme: unknown; .*did you mean W8A8"),
        ("a=naive", "scheme: unknown"),
        ("a", "scheme: wrong form; expected PATTERN=SCHEME,... or a FILE.json, found 'a'"),
        ("a=", "scheme: wrong form; expected PATTERN=SCHEME, separated by commas, found 'a='"),
        ("=W8A8", "scheme: an empty pattern"),
        ("a=W8A8,", "scheme: wrong form"),
        ("a=W8A8,a=O1", "scheme: is given twice; found 'a'"),
        ("re:[=W8A8", "scheme: not a regular expression"),
        ("a=W4A16-g48", "group_size: unknown; expected one of -1, 32"),
        ("a=W8A8-g32", "scheme: has no effect without INT4"),
        ("a=W4A16-minmaks", "W4A16-minmaks: unknown; .*-minmax.* found 'minmaks'"),
        ("a=W4A16-absmax", "every symmetric scheme uses the recipe's rule"),
        ("a=W8A8-alpha0.5", "scheme: sets what belongs to the recipe"),
        ("a=W4A16-no_act_order", "scheme: sets what belongs to the recipe"),
        ({"a": "W4A16-g" + "1" * 5000}, "unknown; .*found 'g1111"),
        ({"a": "W4A16-g\u0663\u0662"}, "unknown"),
        ({"re:[[a]": "W8A8"}, "scheme: not a regular expression: Possible nested set"),
        ({"a": {"weights": {}, "input_activation": None}}, "scheme a: .*mean input_activations"),
        ({"a": {"weights": {}, "output_activations": {}}}, "output_activations: bad value"),
        ({"a": 3}, "scheme a: wrong form; expected the name of a scheme, null or an object"),
        ({"a": {"weights": {"num_bits": 5}}}, "scheme a: weights.num_bits: bad value"),
    ],
)
def test_a_scheme_that_is_none_is_refused(scheme, message):
    with pytest.raises(RecipeError, match=message):
        recipe("W8A16", scheme=scheme)


def test_names_with_options_are_taken_apart():
    assert parse_name("W4A8-g64-minmax-alpha0.8") == (
        "W4A8",
        {"group_size": 64, "rule": "minmax", "alpha": 0.8},
    )
    assert parse_name("W4A16-g-1") == ("W4A16", {"group_size": -1})
    assert parse_name("naive") == ("naive", {})


def test_changes_may_be_words_of_the_name():
    assert recipe("W4A8-g32-alpha0.5") == recipe("W4A8", group_size=32, alpha=0.5)
    assert recipe("W4A8-g32", alpha=0.5) == recipe("W4A8", group_size=32, alpha=0.5)
    assert recipe("naive-O1") == recipe("naive", scheme="O1")


def test_a_change_is_given_once():
    with pytest.raises(RecipeError, match="group_size: is given twice; found 32 in W4A8-g32, 64"):
        recipe("W4A8-g32", group_size=64)
