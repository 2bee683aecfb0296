"""One block of level 2: what the reference did in it, and who is asked to do the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from planish.compare.conformance.routing import Choices, legal_choices
from planish.compare.conformance.trace import Seen, activations
from planish.compare.subject import Codes, Modules
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Experts


@dataclass(frozen=True, kw_only=True)
class BlockCase:
    """A block, the reference's way through it, and the subject's modules.

    options: by row, the block's outputs [choices, D] where a router is near a tie (routing.py)
    """

    config: ModelConfig
    layer: int
    block: Block
    seen: Seen
    modules: Modules
    codes: Codes | None = None
    options: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def in_floats(self) -> bool:
        """Whether nothing is on a grid where a code could flip."""
        return activations(self.block) == {"float"} and self.config.kv_cache == "float32"

    @property
    def experts(self) -> Experts:
        if not isinstance(self.block.mlp, Experts):
            raise TypeError("this block has no experts")
        return self.block.mlp

    def linears(self, names: tuple[str, ...]) -> dict[str, Linear]:
        """Some of the block's linears, by name."""
        return {name: self.linear(name) for name in names}

    def linear(self, name: str) -> Linear:
        """One linear of attention or of the MLP."""
        return getattr(self.block if name in tuple("qkvo") else self.block.mlp, name)

    def choices(self, margin: float) -> Choices:
        """The rows whose experts may be chosen in several ways, and these ways."""
        scores = reference_linear.linear(self.seen["n"], self.experts.router)
        return legal_choices(self.config, scores, margin)
