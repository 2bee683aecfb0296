"""The form of an architecture entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from planish.reference.architectures.read.keys import Keys
from planish.reference.model.config import ModelConfig


@dataclass(frozen=True)
class Tensor:
    """Where one of our parts lies in a Hugging Face checkpoint.

    `name` is the prefix of its weight and bias; `{i}` is the layer, `{e}` the expert, `{h}` the
    head where a norm has a tensor for each. `also` are other names that some checkpoints use.

    Parts of one name are fused: their rows lie one behind the other, in the entry's order. Where
    they are `grouped`, each key-value head has its queries' rows, its key's, and its value's
    together. `transposed` weights are [inputs, outputs].
    """

    name: str
    also: tuple[str, ...] = ()
    fused: bool = False
    grouped: bool = False
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the part lies by itself, as we would write it."""
        return not (self.fused or self.transposed or "{h}" in self.name)


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face model_type.

    `tensors` says where our outer parts lie (embed, positions, project_in, embed_norm,
    final_norm, project_out, head) and `block` those of a block (block.py; `experts.gate` stands
    for every expert's), each a Tensor or just its name. Checkpoints may leave off the first word
    of the names, or put others before it (names.py).

    `interpolated`: max_position_embeddings count linear positions after the stretch.
    """

    model_type: str
    config: Callable[[Keys], ModelConfig]
    tensors: dict[str, str | Tensor]
    block: dict[str, str | Tensor]
    examples: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=())  # patterns of tensors that carry no weights
    interpolated: bool = False

    def tensor(self, part: str) -> Tensor:
        """Where a part lies, the layer's number and the expert's not yet filled in."""
        found = (self.tensors | self.block)[part]
        return found if isinstance(found, Tensor) else Tensor(found)

    def together(self, part: str) -> tuple[str, ...]:
        """All the parts in the tensor that holds a fused part, in their order."""
        name = self.tensor(part).name
        return tuple(other for other in self.block if self.tensor(other).name == name)
