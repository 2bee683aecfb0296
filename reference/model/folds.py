"""Which norm feeds which linears: where SmoothQuant may move a scale (SPEC 3).

It follows from the config. A norm can be divided by a scale if only linears read its output; their
weights are multiplied by the scale:

    pre, sandwich     attention_norm -> q k v        mlp_norm -> gate up, or a router and experts
    shared_norm       attention_norm -> q k v gate up
    post, output      none: the residual stream reads the norms' outputs
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.reference.model.config import ModelConfig


@dataclass(frozen=True)
class Fold:
    """A norm and all the linears that read its output; `experts.gate` means every expert's."""

    norm: str
    linears: tuple[str, ...]


def folds(config: ModelConfig) -> tuple[Fold, ...]:
    """The norms of a block whose output only linears read; a layer may lack some of the linears.

    A model with experts may have dense MLPs in other layers, so both kinds are named.
    """
    if not config.norms_before:
        return ()
    mlp = ("gate", "up") if config.gated_mlp else ("up",)
    if config.moe is not None:
        mlp = ("router", *(f"experts.{linear}" for linear in mlp), *mlp)
    attention = ("q", "k", "v")
    if config.shared_norm:
        return (Fold("attention_norm", (*attention, *mlp)),)
    return Fold("attention_norm", attention), Fold("mlp_norm", mlp)
