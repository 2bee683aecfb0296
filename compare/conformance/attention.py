"""Level 1 without a model: the kernels' attention on caches that no prompt of level 2 produces.

    rows      one sequence, or two at different positions
    tokens    1, for which the slots are split between threads; several, which are no multiple of
              the rows computed at a time
    slots     fewer than, more than and exactly the 128 of one step of the running softmax and the
              256 of one thread's segment; the slots after a row's position contain large values,
              left from another text, that must not be read
    heads     16 to 128 wide; 1 to 7 query heads per key-value head; rotated or not
    mode      float attention over floats or INT8 codes; INT8 attention with a scale for each token
              and head, or with calibrated ones that clip some keys and values

Three checks each: the contents of the new slots (floats within 1e-6 of the largest; codes as in
kv_cache.py), that no other slot has changed (equal), and the output over the found cache: of float
attention within the tolerance of a softmax (module_checks.py), of INT8 attention within that and
what codes near a tie move (int8_attention.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.int8_attention import attend_codes
from planish.compare.conformance.kv_cache import check_slot_codes, dequantize_slots
from planish.compare.conformance.module_checks import SOFTMAX_TOLERANCE
from planish.compare.subject import AttentionCall, SlotAttention, Slots
from planish.reference.grids import INT8_MAX, int8_scale
from planish.reference.model import layers as reference_layers
from planish.reference.model.attention import AttentionScales, HeadCodes
from planish.reference.model.config import Alibi
from planish.reference.model.layers import causal_mask
from planish.reference.model.rope import Rope, rotate

ROTATION_TOLERANCE = 1e-6  # relative; two products and a sum
STALE = 1e3  # in slots that no row has reached
MODES = ("floats", "INT8", "INT8 attention", "static INT8 attention")
CALIBRATED = AttentionScales(
    q=np.array([0.02], np.float32), k=np.array([0.025], np.float32), v=np.array([0.03], np.float32)
)


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """Row b has starts[b] slots written and gets `tokens` more."""

    starts: tuple[int, ...]
    tokens: int
    slots: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool = True
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
        """The options that only some models use, by the kernel's names."""
        names = ("interleaved", "window", "alibi", "cap")
        return {name: getattr(self, name) for name in names}


def make_case(
    starts: tuple[int, ...], tokens: int, slots: int, heads: tuple[int, int, int], **options: Any
) -> AttentionCase:
    """heads: of queries, of keys and values, and their width."""
    options |= dict(zip(("heads", "kv_heads", "head_dim"), heads, strict=True))
    return AttentionCase(starts=starts, tokens=tokens, slots=slots, **options)


SLOPES = (0.5, 0.25, 0.125, 0.0625)
CASES = (
    make_case((0,), 13, 16, (4, 2, 16)),
    make_case((0,), 150, 160, (3, 1, 48)),  # a second step of 128 slots, not full
    make_case((127,), 1, 128, (4, 2, 32)),  # the last slot of the first step
    make_case((300, 17), 1, 512, (7, 1, 64)),
    make_case((511,), 1, 512, (4, 4, 128), rotary=False),
    make_case((5, 122), 9, 144, (6, 2, 64), rotary=False),  # the tokens of row 1 cross into a step
    make_case((300, 17), 1, 512, (4, 2, 32), interleaved=True, window=100),
    make_case((200,), 70, 512, (4, 2, 32), window=130, cap=2.0),
    make_case((300, 17), 1, 512, (4, 4, 16), rotary=False, alibi=Alibi(slopes=SLOPES)),
    make_case(
        (100,),
        70,
        176,
        (4, 2, 16),
        rotary=False,
        alibi=Alibi(slopes=SLOPES, divided=True, bfloat16=True),
    ),
)


def check_slot_attention(kernels: SlotAttention, variants: tuple[str, ...]) -> Iterator[Check]:
    """Every case in every mode, on each instruction set."""
    for number, case in enumerate(CASES):
        for seed, mode in enumerate(MODES):
            call = draw_call(case, mode, np.random.default_rng((0, number, seed)))
            for isa in variants:
                yield from check_attention_case(case, mode, call, kernels, isa)


def check_attention_case(
    case: AttentionCase, mode: str, call: AttentionCall, kernels: SlotAttention, isa: str
) -> Iterator[Check]:
    """Check one call of the kernel."""
    mixed, past = kernels.attention(call, isa)
    name = f"{case}, {mode}, {isa}"
    for row, start in enumerate(case.starts):
        part, new = f"{name}, row {row}", slice(start, start + case.tokens)
        q, k, v = rotate_heads(case, call, row)
        written = [array[row][:, new] for array in past]
        yield from check_new(part, (k, v), written, call.scales)
        for kind, *pair in zip(KINDS, call.past, past, strict=False):
            expected, kept = (np.delete(array[row], new, axis=1) for array in pair)
            yield check(1, None, f"{part}, other slots, {kind}", expected, kept, 0.0)
        mask = causal_mask(call.positions[row], new.stop, case.window)
        attend = attend_over_codes if call.int8 else attend_over_floats
        found = attend(case, q, [array[row : row + 1, :, : new.stop] for array in past], mask, call)
        yield check(1, None, part, found[0], mixed[row], found[1])


def attend_over_floats(
    case: AttentionCase, q: np.ndarray, past: Slots, mask: np.ndarray, _: AttentionCall
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's attention of one row's q over the found slots, and its tolerance."""
    keys, values = (array[0].swapaxes(0, 1) for array in dequantize_slots(past))
    output = reference_layers.attention(q, keys, values, mask, case.divisor, case.alibi, case.cap)
    return output, SOFTMAX_TOLERANCE * np.abs(output).max()


def attend_over_codes(
    case: AttentionCase, q: np.ndarray, past: Slots, mask: np.ndarray, call: AttentionCall
) -> tuple[np.ndarray, np.ndarray]:
    """The same for INT8 attention."""
    arrays = [array[0].swapaxes(0, 1) for array in past]  # [S, G, ...]
    fixed = call.scales
    if fixed is None:
        keys, values = (
            HeadCodes(x, s[..., None]) for x, s in zip(arrays[:2], arrays[2:], strict=True)
        )
    else:
        keys, values = (
            HeadCodes(x, s.reshape(1, 1, 1), static=True)
            for x, s in zip(arrays[:2], (fixed.k, fixed.v), strict=True)
        )
    scores = case.divisor, case.alibi, case.cap
    found = attend_codes(q, keys, values, mask, scores, None if fixed is None else fixed.q)
    return found.expected, found.allowed


KINDS = ("keys", "values", "key scales", "value scales")


def check_new(
    part: str,
    floats: tuple[np.ndarray, ...],
    slots: list[np.ndarray],
    static: AttentionScales | None,
) -> Iterator[Check]:
    """Check the slots [G, T, Hd] of new keys and values [T, G, Hd], and their scales [G, T]."""
    codes, scales = slots[:2], slots[2:]
    for number, (kind, x) in enumerate(zip(KINDS[:2], floats, strict=True)):
        found, name = codes[number].swapaxes(0, 1), f"{part}, new {kind}"
        if not scales:
            yield check(1, None, name, x, found, ROTATION_TOLERANCE * np.abs(x).max())
            continue
        scale = int8_scale(np.abs(x).max(axis=-1, keepdims=True))
        if static is not None:
            scale = np.broadcast_to((static.k, static.v)[number], scale.shape)
        given, known = scales[number].swapaxes(0, 1), scale[..., 0]
        yield check(1, None, f"{name}, scale", known, given, ROTATION_TOLERANCE * known)
        yield check_slot_codes(1, None, f"{name}, codes", floats=x, scale=scale, codes=found)


def rotate_heads(case: AttentionCase, call: AttentionCall, row: int) -> list[np.ndarray]:
    """One row's q, k and v by the reference: [T, heads, Hd] each."""
    q, k, v = (x[row].reshape(case.tokens, -1, case.head_dim) for x in (call.q, call.k, call.v))
    if call.tables is not None:
        cos, sin = (table[call.positions[row]] for table in call.tables)
        rope = Rope(theta=1.0, dim=case.head_dim, interleaved=case.interleaved)
        q, k = rotate(q, cos, sin, rope), rotate(k, cos, sin, rope)
    return [q, k, v]


def draw_call(case: AttentionCase, mode: str, rng: np.random.Generator) -> AttentionCall:
    """Gaussian q, k, v and slots; slots that no row has reached are stale."""
    static = mode.startswith("static")
    batch, width = len(case.starts), case.head_dim
    q, k, v = (
        rng.standard_normal((batch, case.tokens, heads * width), np.float32)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    positions = np.array(case.starts)[:, None] + np.arange(case.tokens)
    angle = rng.uniform(0, 7, (case.slots, width // 2)).astype(np.float32)
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        positions=positions.astype(np.int32),
        tables=(np.cos(angle), np.sin(angle)) if case.rotary else None,
        past=draw_floats(case, rng)
        if mode == "floats"
        else draw_codes(case, rng)[: 2 if static else 4],
        int8=mode.endswith("attention"),
        scales=CALIBRATED if static else None,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        **case.options(),
    )


def draw_floats(case: AttentionCase, rng: np.random.Generator) -> list[np.ndarray]:
    """Keys and values [B, G, S, Hd]."""
    shape = len(case.starts), case.kv_heads, case.slots, case.head_dim
    return [fill_unwritten(case, rng.standard_normal(shape, np.float32)) for _ in range(2)]


def draw_codes(case: AttentionCase, rng: np.random.Generator) -> list[np.ndarray]:
    """The same as codes, and their scales [B, G, S]."""
    shape = len(case.starts), case.kv_heads, case.slots, case.head_dim
    codes = [rng.integers(-INT8_MAX, INT8_MAX + 1, shape).astype(np.int8) for _ in range(2)]
    scales = [rng.uniform(0.005, 0.03, shape[:3]).astype(np.float32) for _ in range(2)]
    return [*codes, *(fill_unwritten(case, scale) for scale in scales)]


def fill_unwritten(case: AttentionCase, slots: np.ndarray) -> np.ndarray:
    """Put large values into the slots that a row has not reached."""
    for row, start in enumerate(case.starts):
        slots[row, :, start:] = STALE
    return slots
