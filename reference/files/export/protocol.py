"""What a format of another program is to the exporter: which linears it holds, and how.

The exporter (convert.py) gives a writer one linear at a time, in the canonical layout and already
in the groups that the writer asked for; biases, floats, names and files are not the writer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from planish.reference.linear import Linear
from planish.reference.progress import Progress, no_progress
from planish.reference.scheme import Scheme

Shape = tuple[int, int]  # N, K


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a linear cannot be held.

    found: what it is ("int4 g=32 offset"). expected: what the format holds. nearest: the format of
    EXPORTS that holds it, such as "gptq_v2" or "planish".
    """

    expected: str
    found: str
    nearest: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a conversion makes, and for whom.

    format: one of EXPORTS (convert.py). dtype: of float tensors; None: as they are, and float32
    where they are computed. layout: of planish's codes; None: tiles if every scheme has them.
    overwrite: whether a model at `out` may be replaced. program: who writes, "planish 0.1.0".
    """

    format: str
    dtype: str | None = None
    layout: str | None = None
    overwrite: bool = False
    program: str = "planish"
    progress: Progress = no_progress


class CannotHoldError(Exception):
    """Raised by `tensors` for a linear whose numbers do not fit: a zero point, a scale's type."""

    def __init__(self, refusal: Refusal):
        super().__init__(f"expected {refusal.expected}, found {refusal.found}")
        self.refusal = refusal


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a config says in addition to the schemes.

    program: who writes, such as "planish 0.1.0". dtype: of the model, as config.json declares it.
    shapes: [N, K] of each linear, by prefix.
    """

    program: str
    dtype: str
    shapes: Mapping[str, Shape]


class Writer(Protocol):
    """One format: a module with these, and a row of WRITERS (export/__init__.py)."""

    @property
    def NAME(self) -> str:  # noqa: N802  (a constant of the module)
        """The format in a message, such as "compressed-tensors"."""

    def refuse(self, scheme: Scheme, shape: Shape) -> Refusal | None:
        """Why no linear [N, K] under this scheme can be held; None if it can."""

    def regroup(self, scheme: Scheme, shape: Shape) -> Scheme:
        """The scheme under which the format stores it: itself, or one of finer groups.

        Only granularity and group_size may differ; codes.refine makes the weight fit. It is called
        for schemes that are not refused.
        """

    def tensors(self, linear: Linear, scheme: Scheme) -> dict[str, np.ndarray]:
        """A linear's tensors by suffix ("weight_packed"), without its bias.

        The weight is canonical and has this scheme, that of `regroup`. Raises CannotHoldError for
        numbers that do not fit.
        """

    def config(self, schemes: Mapping[str, Scheme | None], facts: Facts) -> dict[str, Any]:
        """The keys to add to config.json, `quantization_config` among them.

        schemes: those of `regroup` by the prefix of each linear under Hugging Face's names, lm_head
        and the routers of experts among them; None if it is in floats.
        """
