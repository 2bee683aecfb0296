"""Rotary position embeddings in configs: rope_theta and rope_scaling, or rope_parameters.

    rope_type          required keys; optional keys
    default
    linear             factor
    dynamic            factor; the original length is max_position_embeddings
    llama3             factor, low_freq_factor, high_freq_factor
    yarn               factor, which may be null; beta_fast, beta_slow, truncate,
                       attention_factor or mscale's pair
    longrope (or su)   short_factor, long_factor: [dim / 2] each; factor, attention_factor

The last three need original_max_position_embeddings, in the same object or in the config around
it; if it is absent, it equals max_position_embeddings. A type of null is no type. Source:
transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from planish.reference.architectures.read.keys import Keys
from planish.reference.errors import notice
from planish.reference.model.config import ModelConfig
from planish.reference.model.rope import (
    Dynamic,
    Interpolation,
    Llama3,
    LongRope,
    Rope,
    RopeScaling,
    Yarn,
)

THETA = 10000.0
ORIGINAL = "original_max_position_embeddings"
OUTSIDE = ("rope_theta", "partial_rotary_factor", "max_position_embeddings")
KNOWN = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", ORIGINAL),
    *("low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "attention_factor"),
    *("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    "finetuned",  # written by the first yarn models, read by no code
)
# Keys that the code of other models reads, and the value with which they change nothing
HARMLESS = {
    "alpha": None,
    "mrope_section": None,
    "mrope_interleaved": False,
    "short_mscale": None,
    "long_mscale": None,
    "llama_4_scaling_beta": None,
    "attn_factor": 1,
    "extrapolation_factor": 1,
}


def read_rope(
    keys: Keys,
    head_dim: int,
    partial_rotary_factor: float | None = None,
    interleaved: bool = False,
    theta: float = THETA,
) -> Rope:
    """The rotary parameters of a config, in the old or the new spelling.

    `partial_rotary_factor` is the default of that key, the fraction of a head that is rotated; None
    if the architecture rotates only whole heads. `theta` is the default of rope_theta. Raises
    ConfigError for an unknown rope type (computing the default type instead would produce text
    that looks right for the first few hundred tokens), for an unknown parameter that would change
    the angles, and for a missing one that the type requires.
    """
    return parse_rope(keys, rope_values(keys), head_dim, partial_rotary_factor, interleaved, theta)


def rope_values(keys: Keys) -> dict[str, Any]:
    """The object of rotary parameters under either name; if both are given, they must be equal."""
    found = [keys.get(name) for name in ("rope_parameters", "rope_scaling")]
    for name, value in zip(("rope_parameters", "rope_scaling"), found, strict=True):
        if value is not None and not isinstance(value, dict):
            raise keys.fail(name, "an object", repr(value))
    new, old = (value or {} for value in found)
    if new and old and new != old:
        raise keys.fail("rope_scaling", "the same as rope_parameters", repr(old))
    return new or old


def parse_rope(
    keys: Keys,
    values: dict[str, Any],
    head_dim: int,
    partial_rotary_factor: float | None = None,
    interleaved: bool = False,
    theta: float = THETA,
) -> Rope:
    """Parse one object of rotary parameters; missing ones come from the config around it."""
    for name in values:
        if name not in KNOWN:
            check_unknown(Keys(values, keys.path), name)
    inner = merge_original_length(keys, merge_outer_keys(keys, values))
    dim = read_rotary_dim(inner, head_dim, partial_rotary_factor)
    base = inner.number("rope_theta", theta)
    scaling = SCALINGS[rope_kind(inner)](inner, dim)
    if isinstance(scaling, Yarn) and base <= 1:
        raise inner.fail("rope_theta", "a number above 1, for yarn", base)
    return Rope(theta=base, dim=dim, interleaved=interleaved, scaling=scaling)


def check_unknown(values: Keys, name: str) -> None:
    """A key that no rope type reads: refuse it if it may change the angles, else log a notice."""
    value = values.get(name)
    if name in HARMLESS:
        values.only(name, HARMLESS[name], HARMLESS[name])
    elif isinstance(value, dict | list):
        raise values.fail(name, "no such rotary parameter", repr(value))
    elif value is not None:
        notice(f"{values.path}: {name}: is not a rotary parameter and is ignored")


def merge_outer_keys(keys: Keys, values: dict[str, Any]) -> Keys:
    """The parameters; those that are absent or null come from the config around them."""
    outside = {name: keys.get(name) for name in OUTSIDE}
    known = {name: value for name, value in values.items() if name in KNOWN}
    given = {name: v for name, v in known.items() if v is not None or name not in outside}
    return Keys({**outside, **given}, keys.path)


def merge_original_length(keys: Keys, inner: Keys) -> Keys:
    """Fill in the original length, given inside or outside; if both are, they must be equal."""
    inside, outside = inner.get(ORIGINAL), keys.get(ORIGINAL)
    if inside is not None and outside is not None and inside != outside:
        raise keys.fail(ORIGINAL, f"{inside!r}, as among the rotary parameters", repr(outside))
    known = next((v for v in (inside, outside) if v is not None), inner.get(OUTSIDE[-1]))
    return Keys({**inner.values, ORIGINAL: known}, keys.path)


def read_rotary_dim(inner: Keys, head_dim: int, factor: float | None) -> int:
    """How many channels of a head are rotated."""
    if factor is None:
        inner.only("partial_rotary_factor", 1.0, 1.0)
        check_pairs(inner, head_dim, head_dim)
        return head_dim
    dim = int(head_dim * inner.number("partial_rotary_factor", factor))
    check_pairs(inner, dim, head_dim, "head_dim" if dim == head_dim else "partial_rotary_factor")
    return dim


def check_pairs(keys: Keys, dim: int, head_dim: int, name: str = "head_dim") -> None:
    """Check that the rotated channels of a head form pairs."""
    if dim % 2 or not 0 < dim <= head_dim:
        expected = f"an even number in 2..{head_dim}, for rotary pairs"
        raise keys.fail(name, expected, dim)


def rope_kind(inner: Keys) -> str:
    """The rope type, under its new or its old key; if both are given, they must be equal."""
    names = {name: name for name in SCALINGS} | {"su": "longrope"}
    given = [key for key in ("rope_type", "type") if inner.get(key) is not None]
    kinds = [inner.choice(key, names) for key in given]
    if len(set(kinds)) > 1:
        raise inner.fail("type", f"{kinds[0]}, as rope_type", kinds[1])
    return kinds[0] if kinds else "default"


def extend_max_positions(config: ModelConfig, interpolated: bool = False) -> ModelConfig:
    """Extend max_positions to the length for which the rope scaling is made.

    `interpolated`: max_position_embeddings already includes the factor of linear scaling.
    """
    scalings = [rope.scaling for rope in config.ropes]
    if interpolated:
        scalings = [each for each in scalings if not isinstance(each, Interpolation)]
    lengths = [scaled_length(each, config.max_positions) for each in scalings]
    return replace(config, max_positions=int(max([config.max_positions, *lengths])))


def scaled_length(scaling: RopeScaling | None, positions: int) -> float:
    """How many positions a rope scaling is made for, given max_position_embeddings.

    linear, yarn   factor times the original length, which may be below max_position_embeddings
    dynamic        factor times max_position_embeddings, up to which it changes nothing
    llama3         as yarn, unless max_position_embeddings exceeds the original length: then it is
                   the intended length (Llama 3.2: 131072, though 8192 * 32 is more)
    longrope       max_position_embeddings
    """
    match scaling:
        case Interpolation():
            return (scaling.original_max_position_embeddings or positions) * scaling.factor
        case Dynamic():
            return positions * scaling.factor
        case Yarn():
            return scaling.original_max_position_embeddings * scaling.factor
        case Llama3() if positions <= scaling.original_max_position_embeddings:
            return scaling.original_max_position_embeddings * scaling.factor
    return positions


def read_no_scaling(inner: Keys, _dim: int) -> None:
    """Type `default`: no scaling."""
    if inner.get("factor") is not None:
        notice(f"{inner.path}: factor: is ignored by rope_type default")


def read_linear(inner: Keys, _dim: int) -> Interpolation:
    """Type `linear`."""
    original = None if inner.get(ORIGINAL) is None else inner.count(ORIGINAL)
    return Interpolation(factor=inner.number("factor"), original_max_position_embeddings=original)


def read_dynamic(inner: Keys, dim: int) -> Dynamic:
    """Type `dynamic`."""
    if dim < 4:  # the exponent of theta's growth is dim / (dim - 2)
        raise inner.fail("head_dim", "at least 4 rotated channels, for dynamic", dim)
    original = inner.count("max_position_embeddings")
    return Dynamic(factor=inner.number("factor"), original_max_position_embeddings=original)


def read_llama3(inner: Keys, _dim: int) -> Llama3:
    """Type `llama3`."""
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if high <= low:
        raise inner.fail("high_freq_factor", f"above low_freq_factor, {low}", high)
    factor, original = inner.number("factor"), inner.count(ORIGINAL)
    return Llama3(
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


def read_yarn(inner: Keys, _dim: int) -> Yarn:
    """Type `yarn`."""
    fast, slow = inner.number("beta_fast", 32.0), inner.number("beta_slow", 1.0)
    if fast <= slow:
        raise inner.fail("beta_fast", f"above beta_slow, {slow}", fast)
    factor = yarn_factor(inner)
    return Yarn(
        factor=factor,
        attention_factor=yarn_attention_factor(inner, factor),
        beta_fast=fast,
        beta_slow=slow,
        original_max_position_embeddings=inner.count(ORIGINAL),
        truncate=inner.flag("truncate", True),
    )


def yarn_factor(inner: Keys) -> float:
    """The factor; null (not an absent key) means the ratio of the lengths, as in transformers."""
    if "factor" in inner.values and inner.get("factor") is None:
        return inner.count("max_position_embeddings") / inner.count(ORIGINAL)
    return inner.number("factor")


def yarn_attention_factor(inner: Keys, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, equation 22), unless the config gives or scales it.

    mscale and mscale_all_dim, given together, make it the ratio of two such values.
    """
    if inner.get("attention_factor") is not None:
        return inner.number("attention_factor")

    def scaled(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if inner.get("mscale") is None or inner.get("mscale_all_dim") is None:
        return scaled(1.0)
    return scaled(inner.number("mscale")) / scaled(inner.number("mscale_all_dim"))


def read_longrope(inner: Keys, dim: int) -> LongRope:
    """Type `longrope`."""
    return LongRope(
        short_factor=inner.numbers("short_factor", dim // 2),
        long_factor=inner.numbers("long_factor", dim // 2),
        attention_factor=longrope_attention_factor(inner),
        original_max_position_embeddings=inner.count(ORIGINAL),
    )


def longrope_attention_factor(inner: Keys) -> float:
    """sqrt(1 + ln(factor) / ln(original)) (Ding et al. 2024, equation 4), unless given."""
    if inner.get("attention_factor") is not None:
        return inner.number("attention_factor")
    original = inner.count(ORIGINAL)
    if inner.get("factor") is not None:
        factor = inner.number("factor")
    else:
        factor = inner.count("max_position_embeddings") / original
    if factor <= 1:
        return 1.0
    if original < 2:
        raise inner.fail(ORIGINAL, "at least 2, for longrope", original)
    return math.sqrt(1 + math.log(factor) / math.log(original))


SCALINGS: dict[str, Callable[[Keys, int], RopeScaling | None]] = {
    "default": read_no_scaling,
    "linear": read_linear,
    "dynamic": read_dynamic,
    "llama3": read_llama3,
    "yarn": read_yarn,
    "longrope": read_longrope,
}
