"""The form of an architecture entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from reference.config import Keys, ModelConfig


@dataclass(frozen=True)
class Fold:
    """A norm and all the linears that read its output: where smoothing is folded (SPEC 3)."""

    norm: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face model_type.

    `tensors` maps our names of the outer parts (embed, positions, project_in, final_norm,
    project_out, head) and `block` our names of a block's parts (attention_norm, q, k, v, o,
    mlp_norm, gate, up, down) to the prefix of the tensor's name, `{i}` being the layer.
    `prefixes` are what some checkpoints leave off or put before those names.
    """

    model_type: str
    config: Callable[[Keys], ModelConfig]
    tensors: dict[str, str]
    block: dict[str, str]
    folds: Callable[[ModelConfig], tuple[Fold, ...]]
    examples: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = field(default=())  # patterns of tensors that carry no weights
