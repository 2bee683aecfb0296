"""The form of an architecture entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planish.reference.architectures.read.keys import Keys
from planish.reference.model.config import ModelConfig


@dataclass(frozen=True)
class Tensor:
    """Where a Hugging Face checkpoint stores one module (q, up, mlp_norm ...).

    `name` is the prefix of its weight and bias; `{i}` is the layer, `{e}` the expert, `{h}` the
    head if a norm has one tensor per head. `also` are other names that some checkpoints use.

    `fused` modules share one name: their rows follow one another in the entry's order. If they are
    `grouped`, the rows of each key-value head are contiguous: its queries', its key's, its value's.
    `transposed` weights are [inputs, outputs].
    """

    name: str
    also: tuple[str, ...] = ()
    fused: bool = False
    grouped: bool = False
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the tensor holds this module alone, in the layout that planish writes."""
        return not (self.fused or self.transposed or "{h}" in self.name)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One Hugging Face model_type.

    `tensors` names the modules outside the blocks (embed, positions, project_in, embed_norm,
    final_norm, project_out, head), and `block` those of a block (reference/model/weights.py;
    `experts.gate` means every expert's), each by a Tensor or just its name. Checkpoints may omit
    the first word of the names, or add others before it (reference/files/names.py).

    `interpolated`: max_position_embeddings already includes the factor of linear rope scaling.
    """

    model_type: str
    config: Callable[[Keys], ModelConfig]
    tensors: dict[str, str | Tensor]
    block: dict[str, str | Tensor]
    examples: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # patterns of tensors that carry no weights
    interpolated: bool = False

    def tensor(self, module: str) -> Tensor:
        """Where a module is stored, the numbers of layer and expert not yet filled in."""
        found = (self.tensors | self.block)[module]
        return found if isinstance(found, Tensor) else Tensor(found)

    def fused_modules(self, module: str) -> tuple[str, ...]:
        """All modules in the tensor that holds a fused module, in the order of its rows."""
        name = self.tensor(module).name
        return tuple(other for other in self.block if self.tensor(other).name == name)
