"""A directory as planish 0.1.0 wrote it: its quantization_config in version 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planish.reference.scheme import Scheme, scheme_from_values

HEADS = {None: "float", 8: "int8", 4: "int4"}


def as_version_1(path: Path, **changes: Any) -> Path:
    """Rewrite the config of a directory of one scheme, besides that of lm_head, and change it."""
    file = path / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"] = version_1(values["quantization_config"]) | changes
    file.write_text(json.dumps(values))
    return path


def version_1(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of version 1 for the values of version 2."""
    groups = given["config_groups"].values()
    schemes = {name: scheme_from_values(group) for group in groups for name in group["targets"]}
    head = schemes.pop("lm_head", None)
    rest = next(iter(schemes.values()), None)
    narrow = next((one for one in (rest, head) if one is not None and one.bits == 4), None)
    return {
        "quant_method": "planish",
        "version": 1,
        "recipe": given["recipe"],
        "bits": None if rest is None else rest.bits,
        "activation": "float" if rest is None else rest.activation,
        "method": given["method"],
        "head": HEADS[head and head.bits],
        "ignore": [],
        "layout": given["layout"],
        **({} if narrow is None else grid(narrow)),
    }


def grid(scheme: Scheme) -> dict[str, Any]:
    """What version 1 said of INT4 weights."""
    return {
        "rule": "signed" if scheme.symmetric else "minmax",
        "group_size": scheme.group_size,
        "scale_dtype": scheme.scale_dtype,
    }
