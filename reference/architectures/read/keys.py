"""Reading a config.json that nobody vouches for: a value of a wrong type or range is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError

LARGEST = 2**24  # no real model has a larger vocabulary, width or depth; beyond it lies nonsense


def whole(value: Any) -> Any:
    """4096 for 4096.0: JSON has one type of number, and some writers make it a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Keys:
    """Typed reading of one config.json: a wrong type or range is an error, never a default.

    null counts as absent, as Hugging Face's configs mean it; see flag and token_ids for what they
    make of it.
    """

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values, self.path = values, path

    def fail(self, name: str, expected: object, found: object) -> ConfigError:
        return ConfigError("bad value", path=self.path, name=name, expected=expected, found=found)

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer that is not too small, perhaps written as a float."""
        value = self.values.get(name)
        value = default if value is None else whole(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
            raise self.fail(name, f"an integer in {least}..{LARGEST}", repr(value))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            if 0 < value < 1e300:
                return float(value)
        raise self.fail(name, "a positive finite number", repr(value))

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of exactly so many positive finite numbers."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != count:
            found = f"{len(value)} of them" if isinstance(value, list) else repr(value)
            raise self.fail(name, f"a list of {count} positive numbers", found)
        return tuple(Keys({name: each}, self.path).number(name) for each in value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers that are not negative."""
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.fail(name, "a list of integers", repr(value))
        return tuple(Keys({name: each}, self.path).count(name, least=0) for each in value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; 0 and 1 are neither, as in transformers 5.

        null is false where that is the default. Elsewhere it is an error: as absence it would be
        true, but transformers 4 computes with it as if it were false.
        """
        value = self.values.get(name, default)
        value = False if value is None and not default else value
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", repr(value))
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: str | None = None) -> str:
        """One of the known words, translated; an unknown word is an error that lists them."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self.fail(name, f"one of {', '.join(choices)}", repr(value))
        return choices[value]

    def spelled(self, **others: str) -> Keys:
        """The same config with other names of some keys: ours=theirs, where only theirs is there.

        Two names with different values are an error.
        """
        values = dict(self.values)
        for ours, theirs in others.items():
            here, there = values.get(ours), values.get(theirs)
            if here is None:
                values[ours] = there
            elif there is not None and here != there:
                raise self.fail(theirs, f"{here!r}, as {ours}", repr(there))
        return Keys(values, self.path)

    def only(self, name: str, value: Any, default: Any = None) -> None:
        """Refuse any other value than this: a flag whose graph this transformer does not have."""
        found = self.values.get(name)
        found = default if found is None else found
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise self.fail(name, f"{json.dumps(value)}, all that is supported", repr(found))

    def token_ids(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """None, one id or a list of ids (generation configs use all three); -1 is no token."""
        if name not in self.values:
            return default
        value = self.values[name]
        listed = [] if value is None else value if isinstance(value, list) else [value]
        listed = [whole(each) for each in listed if each != -1]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in listed):
            raise self.fail(name, "a token id or a list of them", repr(value))
        return tuple(listed)


# Hugging Face's names of activation functions -> ours (layers.ACTIVATIONS)
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
    """Query heads share key-value heads in equal groups."""
    if num_heads % num_kv_heads:
        expected = f"a divisor of {num_heads} attention heads"
        raise keys.fail(name, expected, num_kv_heads)


def divided(keys: Keys, name: str, whole: int, parts: int) -> int:
    """whole / parts where it must come out even."""
    if whole % parts:
        raise keys.fail(name, f"a multiple of {parts} heads", whole)
    return whole // parts
