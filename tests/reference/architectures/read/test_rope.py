"""Rotary positions in configs: every type, both spellings, what each requires."""

from pathlib import Path

import numpy as np
import pytest

from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.errors import ConfigError
from planish.reference.model.rope import LongRope, Rope, Yarn, attention_factor, frequencies

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 4.0, 8.0]}
YARN = {"factor": 4.0, "beta_fast": 8.0}
LENGTH = "original_max_position_embeddings"
ORIGINAL = {LENGTH: 64}

# Computed by transformers 5.23 (ROPE_INIT_FUNCTIONS) for head_dim 8 and 128 positions, in float32
FREQUENCIES = [
    ("linear", 1e4, {"factor": 4.0}, 300, [0.25, 0.025, 0.00249999994, 0.000250000012], 1.0),
    ("dynamic", 1e4, {"factor": 2.0}, 128, [1.0, 0.1, 0.01, 0.001], 1.0),
    (
        "dynamic",
        1e4,
        {"factor": 2.0},
        300,
        [1.0, 0.0647275746, 0.00418965891, 0.000271186437],
        1.0,
    ),
    (
        "llama3",
        500.0,
        LLAMA3 | ORIGINAL,
        300,
        [1.0, 0.0976166278, 0.00559017016, 0.00118217699],
        1.0,
    ),
    (
        "yarn",
        1e3,
        YARN | ORIGINAL,
        300,
        [1.0, 0.111142464, 0.00790569466, 0.00140585331],
        1.138629436111989,
    ),
    (
        "yarn",
        1e3,
        YARN | ORIGINAL | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 0.3},
        300,
        [1.0, 0.082559198, 0.00790569466, 0.00140585331],
        1.0532376815143234,
    ),
    (
        "yarn",
        1e3,
        {"factor": 4.0, "attention_factor": 1.25},
        300,
        [1.0, 0.111142464, 0.00790569466, 0.00140585331],
        1.25,
    ),
    (
        "longrope",
        1e4,
        LONG | ORIGINAL,
        64,
        [1.0, 0.0909090936, 0.00769230770, 0.000624999986],
        1.0801234497346435,
    ),
    (
        "longrope",
        1e4,
        LONG | ORIGINAL | {"factor": 4.0},
        65,
        [1.0, 0.0500000007, 0.0025, 0.000125000006],
        1.1547005383792517,
    ),
]


def read(values, part=None, head_dim=8, **outside):
    around = {"max_position_embeddings": 128, **outside}
    return read_rope(Keys({"rope_parameters": values, **around}, Path("c.json")), head_dim, part)


@pytest.mark.parametrize(("kind", "theta", "factors", "length", "expected", "scale"), FREQUENCIES)
def test_frequencies_are_those_of_transformers(kind, theta, factors, length, expected, scale):
    rope = read({"rope_type": kind, "rope_theta": theta, **factors})
    assert attention_factor(rope) == pytest.approx(scale, rel=1e-12)
    assert frequencies(rope, length) == pytest.approx(np.array(expected), rel=1e-7)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [("linear", {"factor": 4.0}), ("yarn", YARN), ("llama3", LLAMA3), ("longrope", LONG)],
)
def test_both_spellings_are_the_same(kind, factors):
    new = read({"rope_type": kind, "rope_theta": 5e5, **factors, **ORIGINAL})
    old = {"rope_theta": 5e5, "rope_scaling": {"type": kind, **factors}, **ORIGINAL}
    keys = Keys({"max_position_embeddings": 128, **old}, Path("c.json"))
    assert read_rope(keys, 8) == new and new.scaling is not None


def test_null_is_no_type_and_what_is_outside():
    linear = {"type": "linear", "factor": 4.0}
    assert read({"rope_type": None, **linear}) == read(linear)
    assert read({"rope_type": None, "rope_theta": None}, rope_theta=5e5) == Rope(theta=5e5, dim=8)
    assert read({"type": None}) == read({"rope_type": None, "type": None}) == read({})


def test_a_yarn_factor_of_null_is_the_ratio_of_the_lengths():
    assert read({"rope_type": "yarn", "factor": None, LENGTH: 32}) == read(
        {"rope_type": "yarn", "factor": 4.0, LENGTH: 32}
    )


@pytest.mark.parametrize(
    "more",
    [
        {"comment": "long", "max_position_embeddings": 9},
        {"alpha": None, "mrope_section": None, "attn_factor": 1.0, "mrope_interleaved": False},
    ],
)
def test_a_key_that_changes_no_angle_is_not_read(more, caplog):
    dynamic = {"rope_type": "dynamic", "factor": 4.0}
    assert read({**dynamic, **more}) == read(dynamic)
    notices = [f"c.json: {name}: is not a rotary parameter and is ignored" for name in more]
    assert caplog.messages == (notices if "comment" in more else [])


def test_a_factor_without_a_type_gives_a_notice(caplog):
    assert read({"factor": 4.0}) == read({"rope_type": None, "factor": 4.0}) == read({})
    assert caplog.messages == ["c.json: factor: is ignored by rope_type default"] * 2


def test_su_is_the_old_name_of_longrope():
    su, new = ({"type": name, **LONG, **ORIGINAL} for name in ("su", "longrope"))
    assert read(su) == read(new) and isinstance(read(su).scaling, LongRope)
    assert read({"rope_type": "longrope", **su}) == read(su)


def test_without_an_original_length_it_is_the_model_s():
    scaling = read({"rope_type": "yarn", "factor": 4.0}).scaling
    assert isinstance(scaling, Yarn) and scaling.original_max_position_embeddings == 128
    assert (scaling.beta_fast, scaling.beta_slow, scaling.truncate) == (32.0, 1.0, True)


def test_part_of_a_head_is_rotated_if_the_architecture_can():
    assert read({"partial_rotary_factor": 0.75}, part=1.0) == Rope(theta=1e4, dim=6)
    assert read({}, part=0.25, partial_rotary_factor=0.5) == Rope(theta=1e4, dim=4)
    assert read({}, part=0.25) == Rope(theta=1e4, dim=2)
    assert read({"partial_rotary_factor": 1.0}) == read({})


BAD = [
    ({"rope_type": "proportional"}, "rope_type: bad value; expected one of default, linear"),
    ({"rope_type": "axial"}, "rope_type: bad value.*'axial'"),
    ({"type": 3}, "type: bad value"),
    ({"rope_type": "linear", "type": "dynamic", "factor": 2}, "type: .*linear, as rope_type"),
    ({"rope_type": "default", "mrope_section": [1]}, "mrope_section: bad value"),
    ({"full_attention": {"rope_type": "default"}}, "full_attention: bad value"),
    ({"rope_type": "default", "alpha": 1000.0}, "alpha: bad value.*null, the only.*1000.0"),
    ({"rope_type": "yarn", "factor": 4.0, "attn_factor": 2}, "attn_factor: bad value.*found 2"),
    ({"rope_type": "linear"}, "factor: bad value.*found None"),
    ({"rope_type": "linear", "factor": None}, "factor: bad value.*found None"),
    ({"rope_type": "linear", "factor": 0}, "factor: bad value.*found 0"),
    ({"rope_type": "linear", "factor": -2.0}, "factor: bad value.*found -2"),
    ({"rope_type": "linear", "factor": "4"}, "factor: bad value.*'4'"),
    ({"rope_type": "linear", "factor": [4]}, "factor: bad value"),
    ({"rope_type": "dynamic"}, "factor: bad value.*found None"),
    ({"rope_type": "llama3", **LLAMA3, "factor": None}, "factor: bad value"),
    ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "low_freq_factor: bad"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor: bad"),
    ({"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}, "high_freq_factor: .*above"),
    ({"rope_type": "llama3", **LLAMA3, LENGTH: 0}, "original_max.*found 0"),
    ({"rope_type": "yarn"}, "factor: bad value.*found None"),
    ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.5}, "beta_fast: .*above beta_slow"),
    ({"rope_type": "yarn", "factor": 4.0, "attention_factor": -1.0}, "attention_factor: bad"),
    ({"rope_type": "yarn", "factor": 4.0, "mscale": 0, "mscale_all_dim": 1.0}, "mscale: bad"),
    ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate: bad value"),
    ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "rope_theta: .*above 1"),
    ({"rope_type": "longrope", "long_factor": LONG["long_factor"]}, "short_factor: bad.*None"),
    ({"rope_type": "longrope", "short_factor": LONG["short_factor"]}, "long_factor: bad.*None"),
    ({"rope_type": "longrope", **LONG, "long_factor": [1.0] * 3}, "long_factor: .*4.*found 3"),
    ({"rope_type": "longrope", **LONG, "long_factor": [1.0] * 5}, "long_factor: .*4.*found 5"),
    ({"rope_type": "longrope", **LONG, "short_factor": [1, 1, 0, 1]}, "short_factor: bad.*0"),
    ({"rope_type": "longrope", **LONG, "short_factor": [1, 1, "1", 1]}, "short_factor: bad.*'1'"),
    ({"rope_type": "longrope", **LONG, "short_factor": 1.0}, "short_factor: bad.*1.0"),
    ({"rope_type": "longrope", **LONG, LENGTH: 1}, "original.*at least 2"),
    ({"rope_theta": 0}, "rope_theta: bad value"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: .*1.0, the only supported value"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=str)
def test_bad_rotary_parameters_are_refused_by_their_key(values, message):
    with pytest.raises(ConfigError, match=f"c.json: {message}"):
        read(values)


def test_parameters_that_contradict_each_other_are_refused():
    linear, dynamic = ({"rope_type": kind, "factor": 2.0} for kind in ("linear", "dynamic"))
    with pytest.raises(ConfigError, match="rope_scaling: bad value; expected the same as"):
        read(linear, rope_scaling=dynamic)
    assert read(linear, rope_scaling=dict(linear)) == read(linear)
    with pytest.raises(ConfigError, match="original_max_position_embeddings: .*64.*found 32"):
        read({"rope_type": "yarn", "factor": 2.0, **ORIGINAL}, original_max_position_embeddings=32)


def test_an_odd_number_of_rotated_channels_is_refused():
    for part, named in ((0.4, "partial_rotary_factor"), (2.0, "partial_rotary_factor")):
        with pytest.raises(ConfigError, match=f"{named}: .*even number in 2..8"):
            read({"partial_rotary_factor": part}, part=1.0)
    with pytest.raises(ConfigError, match="head_dim: .*even number in 2..7"):
        read({}, head_dim=7)
    with pytest.raises(ConfigError, match="head_dim: .*at least 4 rotated channels"):
        read({"rope_type": "dynamic", "factor": 2.0}, head_dim=2)
