"""Rotary positions as configs spell them: rope_theta and rope_scaling, or rope_parameters.

    rope_type          what it needs; what it may have
    default
    linear             factor
    dynamic            factor; the trained length is max_position_embeddings
    llama3             factor, low_freq_factor, high_freq_factor
    yarn               factor, which may be null; beta_fast, beta_slow, truncate,
                       attention_factor or mscale's pair
    longrope (or su)   short_factor, long_factor: [dim / 2] each; factor, attention_factor

The last three count on original_max_position_embeddings, inside or beside the others; without it
max_position_embeddings are the original ones. A type of null is no type. Source: transformers'
modeling_rope_utils.
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
    Stretch,
    Yarn,
)

THETA = 10000.0
ORIGINAL = "original_max_position_embeddings"
OUTSIDE = ("rope_theta", "partial_rotary_factor", "max_position_embeddings")
KNOWN = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", ORIGINAL),
    *("low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "attention_factor"),
    *("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    "finetuned",  # said by the first yarn models, read by none
)
# What some models' code reads, and the value with which it changes nothing
OF_OTHERS = {
    "alpha": None,
    "mrope_section": None,
    "mrope_interleaved": False,
    "short_mscale": None,
    "long_mscale": None,
    "llama_4_scaling_beta": None,
    "attn_factor": 1,
    "extrapolation_factor": 1,
}


def rope_from(
    keys: Keys,
    head_dim: int,
    part: float | None = None,
    interleaved: bool = False,
    theta: float = THETA,
) -> Rope:
    """Rotary parameters in either generation of spelling.

    `part` is the share of a head that is turned where the config does not say
    (partial_rotary_factor); None where only whole heads can be. `theta` is the architecture's
    own default. Raises ConfigError for an unknown rope type (silently computing the default one
    would produce text that looks right for the first few hundred tokens), for a parameter that
    would change the angles and for one that its type needs and lacks.
    """
    return rope_of(keys, rope_values(keys), head_dim, part, interleaved, theta)


def rope_values(keys: Keys) -> dict[str, Any]:
    """The object of rotary parameters under either of its names; two must be equal."""
    found = [keys.get(name) for name in ("rope_parameters", "rope_scaling")]
    for name, value in zip(("rope_parameters", "rope_scaling"), found, strict=True):
        if value is not None and not isinstance(value, dict):
            raise keys.fail(name, "an object", repr(value))
    new, old = (value or {} for value in found)
    if new and old and new != old:
        raise keys.fail("rope_scaling", "what rope_parameters says", repr(old))
    return new or old


def rope_of(
    keys: Keys,
    values: dict[str, Any],
    head_dim: int,
    part: float | None = None,
    interleaved: bool = False,
    theta: float = THETA,
) -> Rope:
    """One object of rotary parameters, what it leaves out read from the config around it."""
    for name in values:
        if name not in KNOWN:
            check_unread(Keys(values, keys.path), name)
    inner = with_original(keys, with_outside(keys, values))
    dim = turned_entries(inner, head_dim, part)
    base = inner.number("rope_theta", theta)
    stretch = STRETCHES[rope_kind(inner)](inner, dim)
    if isinstance(stretch, Yarn) and base <= 1:
        raise inner.fail("rope_theta", "a number above 1, for yarn", base)
    return Rope(theta=base, dim=dim, interleaved=interleaved, stretch=stretch)


def check_unread(values: Keys, name: str) -> None:
    """A key that no rope type reads: refused if it may turn positions otherwise, or told of."""
    value = values.get(name)
    if name in OF_OTHERS:
        values.only(name, OF_OTHERS[name], OF_OTHERS[name])
    elif isinstance(value, dict | list):
        raise values.fail(name, "no such key among rotary parameters", repr(value))
    elif value is not None:
        notice(f"{values.path}: {name}: is no rotary parameter, and not read")


def with_outside(keys: Keys, values: dict[str, Any]) -> Keys:
    """The parameters, those that they leave out or have as null from the config around them."""
    outside = {name: keys.get(name) for name in OUTSIDE}
    known = {name: value for name, value in values.items() if name in KNOWN}
    said = {name: v for name, v in known.items() if v is not None or name not in outside}
    return Keys({**outside, **said}, keys.path)


def with_original(keys: Keys, inner: Keys) -> Keys:
    """The length that was trained on stands inside or outside; two must be equal."""
    inside, outside = inner.get(ORIGINAL), keys.get(ORIGINAL)
    if inside is not None and outside is not None and inside != outside:
        raise keys.fail(ORIGINAL, f"{inside!r}, as among the rotary parameters", repr(outside))
    known = next((v for v in (inside, outside) if v is not None), inner.get(OUTSIDE[-1]))
    return Keys({**inner.values, ORIGINAL: known}, keys.path)


def turned_entries(inner: Keys, head_dim: int, part: float | None) -> int:
    """How many entries of a head are turned."""
    if part is None:
        inner.only("partial_rotary_factor", 1.0, 1.0)
        check_pairs(inner, head_dim, head_dim)
        return head_dim
    dim = int(head_dim * inner.number("partial_rotary_factor", part))
    check_pairs(inner, dim, head_dim, "head_dim" if dim == head_dim else "partial_rotary_factor")
    return dim


def check_pairs(keys: Keys, dim: int, head_dim: int, name: str = "head_dim") -> None:
    """The turned entries of a head are pairs of its entries."""
    if dim % 2 or not 0 < dim <= head_dim:
        expected = f"an even number in 2..{head_dim}, for rotary pairs"
        raise keys.fail(name, expected, dim)


def rope_kind(inner: Keys) -> str:
    """The rope type, under its new name or its old one; two must be equal."""
    names = {name: name for name in STRETCHES} | {"su": "longrope"}
    said = [key for key in ("rope_type", "type") if inner.get(key) is not None]
    kinds = [inner.choice(key, names) for key in said]
    if len(set(kinds)) > 1:
        raise inner.fail("type", f"{kinds[0]}, as rope_type", kinds[1])
    return kinds[0] if kinds else "default"


def with_reach(config: ModelConfig, interpolated: bool = False) -> ModelConfig:
    """max_positions as far as stretched positions reach, where the config has the trained length.

    `interpolated`: of an architecture whose max_position_embeddings count linear positions as
    they are after the stretch.
    """
    stretches = [rope.stretch for rope in config.ropes]
    if interpolated:
        stretches = [each for each in stretches if not isinstance(each, Interpolation)]
    reaches = [reach(each, config.max_positions) for each in stretches]
    return replace(config, max_positions=int(max([config.max_positions, *reaches])))


def reach(stretch: Stretch | None, positions: int) -> float:
    """How many positions a stretch is made for, given max_position_embeddings.

    linear, yarn   factor times the trained length, which max_position_embeddings may be or exceed
    dynamic        changes nothing up to max_position_embeddings: it is for `factor` of them
    llama3         as yarn, but where max_position_embeddings exceed the trained length they are
                   what the model was made for: Llama 3.2 has 131072, of 8192 times 32
    longrope       max_position_embeddings, always
    """
    match stretch:
        case Interpolation():
            return (stretch.original or positions) * stretch.factor
        case Dynamic():
            return positions * stretch.factor
        case Yarn():
            return stretch.original * stretch.factor
        case Llama3() if positions <= stretch.original:
            return stretch.original * stretch.factor
    return positions


def unstretched(inner: Keys, dim: int) -> None:
    """Type `default`: positions beyond the training's are turned as they come."""
    if inner.get("factor") is not None:
        notice(f"{inner.path}: factor: is not read by rope_type default")


def linear(inner: Keys, dim: int) -> Interpolation:
    original = None if inner.get(ORIGINAL) is None else inner.count(ORIGINAL)
    return Interpolation(factor=inner.number("factor"), original=original)


def dynamic(inner: Keys, dim: int) -> Dynamic:
    if dim < 4:  # theta grows by the power dim / (dim - 2)
        raise inner.fail("head_dim", "at least 4 turned entries, for dynamic", dim)
    original = inner.count("max_position_embeddings")
    return Dynamic(factor=inner.number("factor"), original=original)


def llama3(inner: Keys, dim: int) -> Llama3:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if high <= low:
        raise inner.fail("high_freq_factor", f"above low_freq_factor, {low}", high)
    factor, original = inner.number("factor"), inner.count(ORIGINAL)
    return Llama3(factor=factor, low=low, high=high, original=original)


def yarn(inner: Keys, dim: int) -> Yarn:
    fast, slow = inner.number("beta_fast", 32.0), inner.number("beta_slow", 1.0)
    if fast <= slow:
        raise inner.fail("beta_fast", f"above beta_slow, {slow}", fast)
    factor = yarn_factor(inner)
    return Yarn(
        factor=factor,
        magnitude=yarn_magnitude(inner, factor),
        fast=fast,
        slow=slow,
        original=inner.count(ORIGINAL),
        truncate=inner.flag("truncate", True),
    )


def yarn_factor(inner: Keys) -> float:
    """The factor; null, but not absence, is the ratio of the lengths, as in transformers."""
    if "factor" in inner.values and inner.get("factor") is None:
        return inner.count("max_position_embeddings") / inner.count(ORIGINAL)
    return inner.number("factor")


def yarn_magnitude(inner: Keys, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al., equation 22), unless the config says or scales it."""
    if inner.get("attention_factor") is not None:
        return inner.number("attention_factor")

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if inner.get("mscale") is None or inner.get("mscale_all_dim") is None:
        return magnitude(1.0)
    return magnitude(inner.number("mscale")) / magnitude(inner.number("mscale_all_dim"))


def longrope(inner: Keys, dim: int) -> LongRope:
    return LongRope(
        short=inner.numbers("short_factor", dim // 2),
        long=inner.numbers("long_factor", dim // 2),
        magnitude=longrope_magnitude(inner),
        original=inner.count(ORIGINAL),
    )


def longrope_magnitude(inner: Keys) -> float:
    """sqrt(1 + ln(factor) / ln(original)) (Ding et al., equation 4), unless the config says."""
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


STRETCHES: dict[str, Callable[[Keys, int], Stretch | None]] = {
    "default": unstretched,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}
