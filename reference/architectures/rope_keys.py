"""Rotary positions as configs spell them: rope_theta and rope_scaling, or rope_parameters."""

from __future__ import annotations

from reference.keys import Keys
from reference.rope import Rope


def rope_from(keys: Keys, head_dim: int) -> Rope:
    """Rotary parameters in either generation of spelling: rope_theta, or rope_parameters.

    An unknown rope type is an error: silently computing the default one would produce text
    that looks right for the first few hundred tokens.
    """
    scaling = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise keys.fail("rope_parameters", "an object", repr(scaling))
    merged = Keys({"rope_theta": keys.get("rope_theta"), **scaling}, keys.path)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise keys.fail("rope_type", "default", repr(kind))
    if head_dim % 2:
        raise keys.fail("head_dim", "an even number, for rotary pairs", head_dim)
    return Rope(theta=merged.number("rope_theta", 10000.0), dim=head_dim)
