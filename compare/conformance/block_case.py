"""One block of level 2: the reference's results in it, and the subject's modules."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from planish.compare.conformance.routing import Choices, find_legal_choices, require_experts
from planish.compare.conformance.trace import Seen, collect_activations
from planish.compare.subject import Codes, Modules
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Experts


@dataclass(frozen=True, kw_only=True)
class BlockCase:
    """A block, what the reference computed in it, and the subject's modules.

    options: the block's outputs [choices, D] by row, where a router is near a tie (routing.py)
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
        """Whether nothing in the block is quantized, so that no code can flip."""
        return collect_activations(self.block) == {"float"} and self.config.kv_cache == "float32"

    @property
    def experts(self) -> Experts:
        return require_experts(self.block)

    def linears(self, names: tuple[str, ...]) -> dict[str, Linear]:
        """Some of the block's linears, by name."""
        return {name: self.linear(name) for name in names}

    def linear(self, name: str) -> Linear:
        """One linear of attention or of the MLP."""
        owner = self.block if name in tuple("qkvo") else self.block.mlp
        found: Linear = getattr(owner, name)
        return found

    def choices(self, margin: float) -> Choices:
        """The rows that have more than one legal choice of experts, and these choices."""
        logits = reference_linear.linear(self.seen["n"], self.experts.router)
        return find_legal_choices(self.config, logits, margin)
