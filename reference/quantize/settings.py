"""The settings of the methods that choose codes; a recipe carries one of these."""

from __future__ import annotations

from dataclasses import dataclass

PRESETS = ("light", "default", "best")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the methods leave open.

    seed:             of what is drawn at random: the samples, if given; their order in training
    search_range:     rtn: try smaller ranges for each group, by the error of its weights
    act_order:        gptq: columns by descending diagonal of the Hessian, groups stay in place
    true_sequential:  gptq: q, k, v, then o, then gate and up, then down, each fed by the others
    damping:          gptq: added to the Hessian's diagonal, as a share of its mean
    preset:           signround: light, default or best (AutoRound's)
    iterations:       teq, signround: steps of training; None for the preset's
    """

    seed: int = 0
    search_range: bool = False
    act_order: bool = True
    true_sequential: bool = True
    damping: float = 0.01
    preset: str = "default"
    iterations: int | None = None


DEFAULTS = Settings()
