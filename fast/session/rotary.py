"""Rotary tables: cos and sin of every slot, computed by the reference and kept on the device."""

from __future__ import annotations

import jax
import numpy as np

from planish.fast.model.backend import Tables
from planish.fast.placement import on_cpu, put
from planish.reference.model.config import ModelConfig
from planish.reference.model.rope import Rope, decoding_rotations, rotations


class RotaryTables:
    """The tables of one model, each computed once."""

    def __init__(self, config: ModelConfig):
        self.ropes = config.ropes
        self._known: dict[tuple[Rope, int], tuple[jax.Array, jax.Array]] = {}

    @on_cpu
    def of_slots(self, slots: int) -> Tables:
        """For decoding, where each token is the last of its sequence."""
        return tuple(self._table(rope, slots) for rope in self.ropes)

    @on_cpu
    def of_prompt(self, slots: int, length: int) -> Tables:
        """For a prompt of `length` tokens, on which some rope scalings depend."""
        return tuple(
            put(rotations(rope, np.arange(slots), length))
            if rope.by_length
            else self._table(rope, slots)
            for rope in self.ropes
        )

    def _table(self, rope: Rope, slots: int) -> tuple[jax.Array, jax.Array]:
        if (rope, slots) not in self._known:
            self._known[rope, slots] = put(decoding_rotations(rope, slots))
        return self._known[rope, slots]
