"""Mixtures of experts, as configs spell them."""

from __future__ import annotations

from planish.reference.architectures.read.keys import Keys
from planish.reference.model.config import Moe


def mixture(
    keys: Keys, *, experts: tuple[str, int], top_k: int, width: int, normalized: bool
) -> Moe:
    """The mixture, with the architecture's own key and defaults; nobody can choose more experts
    than there are."""
    name, default = experts
    count, chosen = keys.count(name, default), keys.count("num_experts_per_tok", top_k)
    if chosen > count:
        raise keys.fail("num_experts_per_tok", f"at most the {count} experts of {name}", chosen)
    return Moe(num_experts=count, top_k=chosen, intermediate_size=width, normalized=normalized)
