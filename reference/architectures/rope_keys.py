"""Rotary positions as configs spell them: rope_theta and rope_scaling, or rope_parameters."""

from __future__ import annotations

from reference.keys import Keys
from reference.rope import Rope


def rope_from(
    keys: Keys, head_dim: int, part: float | None = None, interleaved: bool = False
) -> Rope:
    """Rotary parameters in either generation of spelling: rope_theta, or rope_parameters.

    `part` is the share of a head that is turned where the config does not say
    (partial_rotary_factor); None turns whole heads, whatever it says. An unknown rope type is an
    error: silently computing the default one would produce text that looks right for the first
    few hundred tokens.
    """
    scaling = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise keys.fail("rope_parameters", "an object", repr(scaling))
    outer = {name: keys.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    merged = Keys({**outer, **scaling}, keys.path)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise keys.fail("rope_type", "default", repr(kind))
    dim = head_dim if part is None else int(head_dim * merged.number("partial_rotary_factor", part))
    check_pairs(keys, dim, head_dim)
    theta = merged.number("rope_theta", 10000.0)
    return Rope(theta=theta, dim=dim, interleaved=interleaved)


def check_pairs(keys: Keys, dim: int, head_dim: int, name: str = "head_dim") -> None:
    """The turned entries of a head are pairs of its entries."""
    if dim % 2 or not 0 < dim <= head_dim:
        expected = f"an even number in 2..{head_dim}, for rotary pairs"
        raise keys.fail(name, expected, dim)
