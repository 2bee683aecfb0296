"""Typed access to an untrusted config.json: a value of a wrong type or range is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError

LARGEST = 2**24  # no real model has a larger vocabulary, width or depth


def whole(value: Any) -> Any:
    """4096 for 4096.0: JSON has one type of number, and some writers make it a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Keys:
    """Typed access to one config.json: a wrong type or range is an error, never a default.

    null counts as absent, as in Hugging Face's configs, except in `flag` and `token_ids`.
    """

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values, self.path = values, path

    def fail(self, name: str, expected: object, found: object) -> ConfigError:
        """The error for a bad value of a key, for the caller to raise."""
        return ConfigError("bad value", path=self.path, name=name, expected=expected, found=found)

    def get(self, name: str) -> Any:
        """The value of a key, unchecked; None if it is absent."""
        return self.values.get(name)

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer of at least `least`; it may be written as a float."""
        value = self.values.get(name)
        value = default if value is None else whole(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
            raise self.fail(name, f"an integer in {least}..{LARGEST}", repr(value))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.values.get(name)
        value = default if value is None else value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or not is_number or not 0 < value < 1e300:
            raise self.fail(name, "a positive finite number", repr(value))
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of exactly `count` positive finite numbers."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != count:
            found = f"{len(value)} of them" if isinstance(value, list) else repr(value)
            raise self.fail(name, f"a list of {count} positive numbers", found)
        return tuple(Keys({name: each}, self.path).number(name) for each in value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of nonnegative integers."""
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.fail(name, "a list of integers", repr(value))
        return tuple(Keys({name: each}, self.path).count(name, least=0) for each in value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; 0 and 1 are neither, as in transformers 5.

        null is false if that is the default. Otherwise it is an error: an absent key would be true,
        but transformers 4 treats null as false.
        """
        value = self.values.get(name, default)
        value = False if value is None and not default else value
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", repr(value))
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: str | None = None) -> str:
        """The translation of a known word; an unknown word is an error that lists them."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self.fail(name, f"one of {', '.join(choices)}", repr(value))
        return choices[value]

    def with_aliases(self, **others: str) -> Keys:
        """The same config with some keys also read under another name: name="alias".

        Two names with different values are an error.
        """
        values = dict(self.values)
        for name, alias in others.items():
            value, other = values.get(name), values.get(alias)
            if value is None:
                values[name] = other
            elif other is not None and value != other:
                raise self.fail(alias, f"{value!r}, as {name}", repr(other))
        return Keys(values, self.path)

    def only(self, name: str, value: Any, default: Any = None) -> None:
        """Refuse every other value of a key: it selects a graph that the transformer lacks."""
        found = self.values.get(name)
        found = default if found is None else found
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise self.fail(name, f"{json.dumps(value)}, the only supported value", repr(found))

    def token_ids(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The token ids of a key: null, one id or a list of ids are all in use; -1 is no token."""
        if name not in self.values:
            return default
        value = self.values[name]
        listed = [] if value is None else value if isinstance(value, list) else [value]
        listed = [whole(each) for each in listed if each != -1]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in listed):
            raise self.fail(name, "a token id or a list of them", repr(value))
        return tuple(listed)

    def token_id(self, name: str, default: tuple[int, ...] = ()) -> int | None:
        """The first of token_ids, or None."""
        return next(iter(self.token_ids(name, default)), None)


# Hugging Face's names of activation functions -> those of reference/model/layers.py
ACTIVATION_NAMES = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def check_heads(
    keys: Keys, num_heads: int, num_kv_heads: int, name: str = "num_key_value_heads"
) -> None:
    """Check that every key-value head serves the same number of query heads."""
    if num_heads % num_kv_heads:
        expected = f"a divisor of {num_heads} attention heads"
        raise keys.fail(name, expected, num_kv_heads)


def divide_evenly(keys: Keys, name: str, whole: int, parts: int) -> int:
    """whole / parts; ConfigError if it is not an integer."""
    if whole % parts:
        raise keys.fail(name, f"a multiple of {parts} heads", whole)
    return whole // parts
