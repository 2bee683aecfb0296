"""What a model's shape is: one frozen record of features, filled from a config.json.

The transformer in model.py looks only at these features; no file but the entries of
`architectures/` knows a model's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference.errors import ConfigError

LARGEST = 2**24  # no real model has a larger vocabulary, width or depth; beyond it lies nonsense
LARGEST_FILE = 2**26  # a JSON file of more than 64 MiB is not a config


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: theta_i = theta ** (-2i / dim) for the first `dim` entries of each head."""

    theta: float
    dim: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The features that drive the transformer. Sizes are counts of entries."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int  # the longest sequence, prompt and new tokens together
    norm: str  # rms_norm | layer_norm
    norm_eps: float
    norm_affine: bool = True  # layer_norm may have neither weight nor bias
    norm_first: bool = True  # x + f(norm(x)) if true, norm(x + f(x)) if not
    final_norm: bool = True
    activation: str
    gated_mlp: bool
    rope: Rope | None = None
    position_offset: int | None = None  # learned positions: token t reads row t + offset
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    embedding_size: int  # differs from hidden_size where the model projects in and out
    tie_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    kv_cache: str = "float32"  # or int8, one scale per token and head; the user's choice

    @property
    def projects(self) -> bool:
        """Whether linears stand between the embedding's width and the blocks' width."""
        return self.embedding_size != self.hidden_size


def read_json(path: Path, error: type[ConfigError] = ConfigError) -> dict[str, Any]:
    """A JSON object from a file, or a typed error; duplicate keys and NaN are refused."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise error("is too large to be JSON", path=path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error("no such file", path=path) from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"cannot be read: {problem}", path=path) from None
    if text.startswith("version https://git-lfs"):
        raise error("is a Git-LFS pointer, not the file; run `git lfs pull`", path=path)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except (ValueError, RecursionError) as problem:
        raise error(f"is not JSON: {problem}", path=path) from None
    if not isinstance(value, dict):
        raise error("wrong form", path=path, expected="a JSON object", found=type(value).__name__)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key stands twice")
    return seen


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


class Keys:
    """Typed reading of one config.json: a wrong type or range is an error, never a default."""

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values, self.path = values, path

    def fail(self, name: str, expected: object, found: object) -> ConfigError:
        return ConfigError("bad value", path=self.path, name=name, expected=expected, found=found)

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer; null counts as absent, as in Hugging Face's configs."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
            raise self.fail(name, f"an integer in 1..{LARGEST}", repr(value))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            if 0 < value < 1e300:
                return float(value)
        raise self.fail(name, "a positive finite number", repr(value))

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", repr(value))
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: str | None = None) -> str:
        """One of the known words, translated; an unknown word is an error that lists them."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.fail(name, f"one of {', '.join(choices)}", repr(value))
        return choices[value]

    def token_ids(self, name: str) -> tuple[int, ...]:
        """None, one id or a list of ids (generation configs use all three)."""
        value = self.values.get(name)
        listed = [] if value is None else value if isinstance(value, list) else [value]
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


def check_heads(keys: Keys, num_heads: int, num_kv_heads: int) -> None:
    """Query heads share key-value heads in equal groups."""
    if num_heads % num_kv_heads:
        expected = f"a divisor of {num_heads} attention heads"
        raise keys.fail("num_key_value_heads", expected, num_kv_heads)


def divided(keys: Keys, name: str, whole: int, parts: int) -> int:
    """whole / parts where it must come out even."""
    if whole % parts:
        raise keys.fail(name, f"a multiple of {parts} heads", whole)
    return whole // parts
