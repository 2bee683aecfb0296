"""Level 1 without a model: the kernels' attention on caches that no prompt of level 2 makes.

    rows      one sequence or two that stand at different positions
    tokens    1, which splits the slots between threads, and several, which do not divide the rows
              that are taken together
    slots     beyond the 64 of one step and the 256 of one part; those behind a row's position hold
              large numbers, left over from another text, and nobody may read them
    heads     of 16 to 128 entries; 1 to 7 query heads to one of keys; rotated or not
    cache     floats or INT8 codes

Three checks each: what the new slots hold (floats within 1e-6 of the largest; codes as cached.py
has it), that no other slot was touched (equal), and the output over the cache that was found,
within the tolerance of a softmax (layers.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.kv_cache import as_floats, check_flips, untiled
from planish.compare.conformance.module_checks import SOFTMAX_TOLERANCE
from planish.compare.conformance.on_device import Sets, computed, positions_of
from planish.fast.model.backend import AttentionConfig
from planish.fast.model.cache import FIELDS
from planish.fast.native import attention as native_attention
from planish.fast.native.cache import KEY_SLOTS, TiledSlots
from planish.reference.grids import INT8_MAX, int8_scale
from planish.reference.model import layers as reference_layers
from planish.reference.model.config import Alibi
from planish.reference.model.layers import causal_mask
from planish.reference.model.rope import Rope, rotate

ROTATED = 1e-6  # two products and a sum
STALE = 1e3


@dataclass(frozen=True)
class Case:
    """Row b has starts[b] slots written and gets `tokens` more."""

    starts: tuple[int, ...]
    tokens: int
    slots: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool
    interleaved: bool = False
    window: int | None = None
    alibi: Alibi | None = None
    cap: float | None = None

    @property
    def divisor(self) -> float:
        return math.sqrt(self.head_dim)

    def __str__(self) -> str:
        heads = f"{self.heads} heads of {self.head_dim} on {self.kv_heads}"
        where = " and ".join(map(str, self.starts))
        other = [f"{name} {value}" for name, value in self.options().items() if value]
        text = f"attention, {self.tokens} tokens from {where} of {self.slots} slots, {heads}"
        return ", ".join([text, *other])

    def options(self) -> dict[str, Any]:
        """What not every model has, by the kernel's names."""
        names = ("interleaved", "window", "alibi", "cap")
        return {name: getattr(self, name) for name in names}

    @property
    def rope(self) -> Rope | None:
        found = Rope(theta=1.0, dim=self.head_dim, interleaved=self.interleaved)
        return found if self.rotary else None

    @property
    def config(self) -> AttentionConfig:
        return AttentionConfig(
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            divisor=self.divisor,
            rope=self.rope,
            table=0 if self.rotary else None,
            window=self.window,
            alibi=self.alibi,
            cap=self.cap,
        )


SLOPES = (0.5, 0.25, 0.125, 0.0625)
CASES = (
    Case((0,), 13, 16, 4, 2, 16, True),
    Case((0,), 70, 80, 3, 1, 48, True),
    Case((63,), 1, 64, 2, 2, 32, True),
    Case((300, 17), 1, 512, 7, 1, 64, True),
    Case((511,), 1, 512, 4, 4, 128, False),
    Case((5, 90), 9, 112, 6, 2, 64, False),
    Case((300, 17), 1, 512, 4, 2, 32, True, interleaved=True, window=100),
    Case((200,), 70, 512, 4, 2, 32, True, window=130, cap=2.0),
    Case((300, 17), 1, 512, 4, 4, 16, False, alibi=Alibi(slopes=SLOPES)),
    Case((30,), 70, 112, 4, 2, 16, False, alibi=Alibi(slopes=SLOPES, divided=True, bfloat16=True)),
)


@dataclass(frozen=True)
class Inputs:
    """q [B, T, H * Hd], k and v [B, T, K * Hd], positions [B, T], tables [S, Hd / 2], the cache."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    positions: np.ndarray
    tables: tuple[np.ndarray, np.ndarray] | None
    past: TiledSlots


def check_attention(sets: Sets, seed: int = 0) -> Iterator[Check]:
    """Every case over both caches, for each instruction set."""
    for number, case in enumerate(CASES):
        for int8 in (False, True):
            inputs = random_inputs(case, int8, np.random.default_rng((seed, number, int8)))
            for isa in sets:
                yield from check_case(case, inputs, isa)


def check_case(case: Case, inputs: Inputs, isa: str) -> Iterator[Check]:
    """One call of the kernel."""
    where = positions_of(inputs.positions, () if inputs.tables is None else (inputs.tables,))
    values = (inputs.q, inputs.k, inputs.v), where, inputs.past, case.config, isa
    mixed, past = computed(native_attention.cached_attention, *values, static=(3, 4))
    name = f"{case}, {'floats' if past.key_scale is None else 'INT8'}, {isa}"
    before, after = (untiled(layer, case.head_dim) for layer in (inputs.past, past))
    for row, start in enumerate(case.starts):
        part, new = f"{name}, row {row}", slice(start, start + case.tokens)
        q, k, v = rotated(case, inputs, row)
        yield from check_new(part, (k, v), [array[row][:, new] for array in after])
        for kind, *pair in zip(KINDS, before, after, strict=False):
            expected, kept = (np.delete(array[row], new, axis=1) for array in pair)
            yield check(1, None, f"{part}, other slots, {kind}", expected, kept, 0.0)
        floats = as_floats(past, case.head_dim)
        keys, slots = (array[row].swapaxes(0, 1)[: new.stop] for array in floats)
        mask = causal_mask(inputs.positions[row], new.stop, case.window)
        scores = case.divisor, case.alibi, case.cap
        output = reference_layers.attention(q, keys, slots, mask, *scores)
        yield check(1, None, part, output, mixed[row], SOFTMAX_TOLERANCE * np.abs(output).max())


KINDS = ("keys", "values", "key scales", "value scales")


def check_new(
    part: str, floats: tuple[np.ndarray, ...], slots: list[np.ndarray]
) -> Iterator[Check]:
    """The slots [K, T, Hd] of new keys and values [T, K, Hd], and their scales [K, T]."""
    codes, scales = slots[:2], slots[2:]
    for number, (kind, x) in enumerate(zip(KINDS[:2], floats, strict=True)):
        found, name = codes[number].swapaxes(0, 1), f"{part}, new {kind}"
        if not scales:
            yield check(1, None, name, x, found, ROTATED * np.abs(x).max())
            continue
        scale = int8_scale(np.abs(x).max(axis=-1, keepdims=True))
        given, known = scales[number].swapaxes(0, 1), scale[..., 0]
        yield check(1, None, f"{name}, scale", known, given, ROTATED * known)
        yield check_flips(1, None, f"{name}, codes", x, scale, found)


def rotated(case: Case, inputs: Inputs, row: int) -> list[np.ndarray]:
    """One row's q, k and v by the reference: [T, heads, Hd] each."""
    given = (x[row].reshape(case.tokens, -1, case.head_dim) for x in (inputs.q, inputs.k, inputs.v))
    q, k, v = given
    if inputs.tables is not None and case.rope is not None:
        cos, sin = (table[inputs.positions[row]] for table in inputs.tables)
        q, k = rotate(q, cos, sin, case.rope), rotate(k, cos, sin, case.rope)
    return [q, k, v]


def random_inputs(case: Case, int8: bool, rng: np.random.Generator) -> Inputs:
    """Gaussian q, k, v and slots; those that no row has reached are stale."""
    batch, width = len(case.starts), case.head_dim
    q, k, v = (
        rng.standard_normal((batch, case.tokens, heads * width), np.float32)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    positions = np.array(case.starts)[:, None] + np.arange(case.tokens)
    angle = rng.uniform(0, 7, (case.slots, width // 2)).astype(np.float32)
    tables = (np.cos(angle), np.sin(angle)) if case.rotary else None
    past = random_codes(case, rng) if int8 else random_floats(case, rng)
    arrays: Any = dict(zip(FIELDS, (tiled(past[0]), *past[1:]), strict=False))
    slots = TiledSlots(**arrays)
    return Inputs(q, k, v, positions.astype(np.int32), tables, slots)


def random_floats(case: Case, rng: np.random.Generator) -> list[np.ndarray]:
    """Keys and values [B, K, S, Hd]."""
    shape = len(case.starts), case.kv_heads, case.slots, case.head_dim
    return [stale(case, rng.standard_normal(shape, np.float32)) for _ in range(2)]


def random_codes(case: Case, rng: np.random.Generator) -> list[np.ndarray]:
    """The same as codes, and their scales [B, K, S]."""
    shape = len(case.starts), case.kv_heads, case.slots, case.head_dim
    codes = [rng.integers(-INT8_MAX, INT8_MAX + 1, shape).astype(np.int8) for _ in range(2)]
    scales = [rng.uniform(0.005, 0.03, shape[:3]).astype(np.float32) for _ in range(2)]
    return [*codes, *(stale(case, scale) for scale in scales)]


def stale(case: Case, slots: np.ndarray) -> np.ndarray:
    """Large numbers in the slots that a row has not reached."""
    for row, start in enumerate(case.starts):
        slots[row, :, start:] = STALE
    return slots


def tiled(keys: np.ndarray) -> np.ndarray:
    """Keys [B, K, S, Hd] -> [B, K, S / 16, Hd, 16], as the kernels read them."""
    batch, heads, slots, width = keys.shape
    split = keys.reshape(batch, heads, slots // KEY_SLOTS, KEY_SLOTS, width)
    return np.ascontiguousarray(split.swapaxes(3, 4))
