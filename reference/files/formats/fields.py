"""Read the fields of a quantization_config; a wrong type or value is a ConfigError."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError


def require(path: Path, name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ConfigError unless a value is allowed, type included: True and 4.0 are not bits."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise bad_field(path, name, f"one of {', '.join(map(str, allowed))}", repr(value))


def bad_field(path: Path, name: str, expected: object, found: object) -> ConfigError:
    """The error for a field with an impossible value."""
    name = f"quantization_config.{name}"
    return ConfigError("bad value", path=path, name=name, expected=expected, found=found)


def require_object(path: Path, name: str, value: object) -> Mapping[str, Any]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise bad_field(path, name, "an object", type(value).__name__)
    return value


def require_names(path: Path, name: str, value: object) -> list[str]:
    """The value, which must be a list of names."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise bad_field(path, name, "a list of names", repr(value))
    return value
