"""Mixtures of experts, as configs spell them."""

from __future__ import annotations

from planish.reference.architectures.read.keys import Keys
from planish.reference.model.config import Moe


def read_moe(
    keys: Keys, *, experts: tuple[str, int], top_k: int, width: int, normalized: bool
) -> Moe:
    """The mixture; `experts` is the key of the number of experts, and its default.

    Raises ConfigError if top_k exceeds the number of experts.
    """
    name, default = experts
    count, top_k = keys.count(name, default), keys.count("num_experts_per_tok", top_k)
    if top_k > count:
        raise keys.fail("num_experts_per_tok", f"at most the {count} experts of {name}", top_k)
    return Moe(num_experts=count, top_k=top_k, intermediate_size=width, normalized=normalized)
