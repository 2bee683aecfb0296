"""How a config names the linears of each scheme: by expressions that cover all layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from planish.reference.files.entries import general_name
from planish.reference.scheme import Scheme


def name_targets(schemes: Mapping[str, Scheme]) -> dict[Scheme, list[str]]:
    """Each scheme -> the targets of its linears: `re:` and an expression, or exact names.

    Linears whose names differ only in numbers share an expression if all have the same scheme:
    re:model[.]layers[.][0-9]+[.]mlp[.]down_proj$
    """
    kinds: dict[str, set[Scheme]] = {}
    for prefix, scheme in schemes.items():
        kinds.setdefault(general_name(prefix), set()).add(scheme)
    found: dict[Scheme, dict[str, None]] = {scheme: {} for scheme in schemes.values()}
    for prefix, scheme in schemes.items():
        general = general_name(prefix)
        shared = len(kinds[general]) == 1 and "{i}" in general
        found[scheme][expression(general) if shared else prefix] = None
    return {scheme: list(targets) for scheme, targets in found.items()}


def expression(general: str) -> str:
    """model.layers.{i}.mlp -> re:model[.]layers[.][0-9]+[.]mlp$"""
    parts = (re.escape(part).replace(r"\.", "[.]") for part in general.split("{i}"))
    return f"re:{'[0-9]+'.join(parts)}$"
