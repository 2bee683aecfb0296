"""Schemes: which combinations exist, how they are shown, and their form in JSON."""

import itertools
import json

import pytest

from planish.reference.errors import RecipeError
from planish.reference.grids import GROUP_SIZES
from planish.reference.scheme import (
    ACTIVATIONS,
    Scheme,
    int4,
    int8,
    scheme_from_values,
    scheme_values,
)

EVERY = [
    *(int8(*one) for one in itertools.product(("per_channel", "per_tensor"), ACTIVATIONS[8])),
    *(
        int4(size, symmetric=symmetric, scale_dtype=dtype, activation=activation)
        for size, symmetric, dtype, activation in itertools.product(
            GROUP_SIZES, (True, False), ("float16", "float32"), ACTIVATIONS[4]
        )
    ),
]


def test_every_scheme_comes_back_from_its_json_and_is_told_from_the_others():
    assert len(set(EVERY)) == len(EVERY) == 8 + 7 * 2 * 2 * 3
    for scheme in EVERY:
        assert scheme_from_values(json.loads(json.dumps(scheme_values(scheme)))) == scheme


def test_a_scheme_is_written_in_the_words_of_compressed_tensors():
    assert scheme_values(int4(128, activation="per_group")) == {
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": 128,
            "scale_dtype": "float16",
        },
        "input_activations": {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "dynamic": True,
        },
    }
    static = scheme_values(int8("per_tensor", "static"))
    assert static["weights"]["strategy"] == "tensor" and static["weights"]["group_size"] is None
    inputs = static["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"]) == ("tensor", False)


def test_what_other_tools_write_of_w8a8_is_read():
    values = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    assert scheme_from_values(values) == int8(activation="per_token")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"bits": 3}, "bits"),
        ({"bits": True}, "bits"),
        ({"bits": 8, "granularity": "per_group"}, "granularity"),
        ({"bits": 8, "group_size": 32}, "group_size"),
        ({"bits": 4, "granularity": "per_group", "scale_dtype": "float16"}, "group_size"),
        ({"bits": 4, "granularity": "per_tensor"}, "granularity"),
        ({"bits": 8, "symmetric": False}, "symmetric"),
        ({"bits": 8, "scale_dtype": "float16"}, "scale_dtype"),
        ({"bits": 8, "activation": "per_group"}, "activation"),
        ({"bits": 4, "scale_dtype": "float16", "activation": "static"}, "activation"),
    ],
)
def test_a_combination_without_meaning_is_refused(fields, name):
    with pytest.raises(RecipeError, match=f"^{name}: bad value; expected one of"):
        Scheme(**fields)


def test_a_scheme_is_shown_in_a_few_words():
    assert str(int8()) == "int8 per_channel"
    assert str(int8("per_tensor", "static")) == "int8 per_tensor, input int8 static"
    assert str(int4(32, symmetric=False)) == "int4 g=32 asymmetric"
    assert str(int4(-1, activation="per_token")) == "int4 per_channel, input int8 per_token"
