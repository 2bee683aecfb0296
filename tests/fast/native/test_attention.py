"""Attention of both backends against the reference's, with every option, over reused slots.

The slots that no token of the sequence has reached contain large numbers, as if from another text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model.backend import AttentionConfig, Positions
from planish.fast.model.cache import FIELDS
from planish.fast.native import attention as native
from planish.fast.native.cache import KEY_SLOTS, CodedSlots, TiledSlots, round_up
from planish.fast.xla import attention as xla
from planish.fast.xla.cache import Slots
from planish.reference.grids import int8_codes, int8_scale
from planish.reference.model.attention import (
    AttentionScales,
    HeadCodes,
    dequantize_heads,
    int8_attention,
    quantize_heads,
)
from planish.reference.model.config import Alibi
from planish.reference.model.layers import attention, causal_mask
from planish.reference.model.rope import Rope, rotate, rotations

SLOPES = (0.5, 0.7071, 0.25, 0.0884, 0.0442, 0.1768)  # of 6 heads, as many as any case has
TOLERANCE = 2e-5  # of the largest magnitude
STALE = 1e3
FIXED = AttentionScales(**{name: np.float32([0.02 + 0.01 * i]) for i, name in enumerate("qkv")})


@dataclass(frozen=True)
class Case:
    """Row b has starts[b] tokens in the cache and gets `tokens` more."""

    starts: tuple[int, ...] = (40, 3)
    tokens: int = 9
    slots: int = 64
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    rope: Rope | None = None
    divisor: float = 4.0
    window: int | None = None
    alibi: Alibi | None = None
    cap: float | None = None
    int8: bool = False

    @property
    def config(self) -> AttentionConfig:
        return AttentionConfig(
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            divisor=self.divisor,
            rope=self.rope,
            table=None if self.rope is None else 0,
            window=self.window,
            alibi=self.alibi,
            cap=self.cap,
        )


CASES = {
    "plain": Case(),
    "a divisor": Case(divisor=11.5),
    "one token": Case(tokens=1, starts=(40, 63)),
    "a prompt": Case(starts=(0,), tokens=50),
    "a window": Case(window=5),
    "a window of one": Case(window=1, tokens=1),
    "a window beyond the slots": Case(window=1000),
    "a window inside a part": Case(window=130, starts=(700, 140), tokens=1, slots=1024),
    "a window over many steps": Case(window=300, starts=(5,), tokens=500, slots=512),
    "a long past": Case(starts=(900, 300), tokens=1, slots=1024),
    "linear biases": Case(alibi=Alibi(slopes=SLOPES)),
    "biases far away": Case(alibi=Alibi(slopes=SLOPES), starts=(900,), tokens=1, slots=1024),
    "divided biases": Case(alibi=Alibi(slopes=SLOPES, divided=True)),
    "rounded biases": Case(
        alibi=Alibi(slopes=SLOPES, divided=True, bfloat16=True), starts=(900,), slots=1024
    ),
    "rounded biases, not divided": Case(alibi=Alibi(slopes=SLOPES, bfloat16=True), tokens=1),
    "a cap": Case(cap=2.0),
    "a cap, biases and a window": Case(cap=3.0, alibi=Alibi(slopes=SLOPES), window=17),
    "halves": Case(rope=Rope(theta=1e4, dim=16)),
    "partial halves": Case(rope=Rope(theta=1e4, dim=10), head_dim=48),
    "neighbours": Case(rope=Rope(theta=1e4, dim=16, interleaved=True), head_dim=32),
    "all neighbours": Case(rope=Rope(theta=1e4, dim=64, interleaved=True), head_dim=64),
    "narrow heads": Case(head_dim=8, rope=Rope(theta=1e4, dim=8)),
    "odd heads": Case(head_dim=72, heads=5, kv_heads=1, rope=Rope(theta=1e4, dim=36)),
}
EVERY = CASES | {f"{name}, int8": replace(case, int8=True) for name, case in CASES.items()}


@dataclass(frozen=True)
class Row:
    """One sequence: q [T, H, Hd], k and v [S, K, Hd] of the past and the new tokens, by floats."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


def rows_of(case: Case, rng: np.random.Generator) -> list[Row]:
    found = []
    for start in case.starts:
        shapes = (
            (case.tokens, case.heads),
            (start + case.tokens, case.kv_heads),
            (start + case.tokens, case.kv_heads),
        )
        found.append(Row(*(rng.standard_normal((*s, case.head_dim), np.float32) for s in shapes)))
    return found


def rotate_rows(case: Case, x: np.ndarray, first: int) -> np.ndarray:
    if case.rope is None:
        return x
    positions = np.arange(first, first + len(x))
    return rotate(x, *rotations(case.rope, positions, case.slots), case.rope)


def expected(case: Case, row: Row, start: int) -> np.ndarray:
    """The reference's attention of the new tokens, [T, H * Hd]."""
    k, v = rotate_rows(case, row.k, 0), row.v
    if case.int8:
        k, v = (dequantize_heads(quantize_heads(x)) for x in (k, v))
    positions = np.arange(start, start + case.tokens)
    mask = causal_mask(positions, len(k), case.window)
    alibi = case.alibi and replace(case.alibi, slopes=case.alibi.slopes[: case.heads])
    return attention(rotate_rows(case, row.q, start), k, v, mask, case.divisor, alibi, case.cap)


def cache_of(case: Case, rows: list[Row]) -> Slots:
    """Keys and values [B, K, S, Hd] of each row, with stale numbers in the slots after them."""
    shape = len(rows), case.kv_heads, case.slots, case.head_dim
    past = [np.full(shape, 99 if case.int8 else STALE, np.int8 if case.int8 else np.float32)] * 2
    past += [np.full(shape[:3], STALE, np.float32)] * 2 if case.int8 else []
    past = [array.copy() for array in past]
    for index, (row, start) in enumerate(zip(rows, case.starts, strict=True)):
        for array, part in zip(past, stored(case, row, start), strict=True):
            array[index, :, :start] = part.swapaxes(0, 1)
    return Slots(**dict(zip(FIELDS, map(jnp.asarray, past), strict=False)))


def stored(case: Case, row: Row, count: int) -> list[np.ndarray]:
    """The first tokens' keys and values [T, K, Hd], and their scales [T, K]."""
    floats = [rotate_rows(case, row.k, 0)[:count], row.v[:count]]
    if not case.int8:
        return floats
    scales = [int8_scale(np.abs(x).max(axis=-1, keepdims=True)) for x in floats]
    codes = [int8_codes(x, scale) for x, scale in zip(floats, scales, strict=True)]
    return [*codes, *(scale[..., 0] for scale in scales)]


def in_tiles(past: Slots) -> TiledSlots:
    """The kernels' form: heads of whole tiles, keys in tiles of 16 slots."""
    batch, heads, slots, width = past.keys.shape
    spare = ((0, 0), (0, 0), (0, 0), (0, round_up(width) - width))
    keys, values = (jnp.pad(array, spare) for array in (past.keys, past.values))
    keys = keys.reshape(batch, heads, slots // KEY_SLOTS, KEY_SLOTS, -1).swapaxes(3, 4)
    found = keys, values, *past.arrays[2:]
    return TiledSlots(**dict(zip(FIELDS, found, strict=False)))


def inputs(case: Case, rows: list[Row]) -> tuple[tuple[jax.Array, ...], Positions]:
    """q, k, v [B, T, heads * Hd] of the new tokens, and where they are."""
    q = np.stack([row.q.reshape(case.tokens, -1) for row in rows])
    k, v = (
        np.stack([x[-case.tokens :].reshape(case.tokens, -1) for x in xs])
        for xs in ([row.k for row in rows], [row.v for row in rows])
    )
    positions = np.array(case.starts)[:, None] + np.arange(case.tokens)
    turns = () if case.rope is None else (tuple(map(jnp.asarray, tables(case))),)
    where = Positions(jnp.asarray(positions.astype(np.int32)), turns)
    return tuple(map(jnp.asarray, (q, k, v))), where


def compute_portable(case: Case, rows: list[Row]) -> np.ndarray:
    attend = jax.jit(xla.cached_attention, static_argnums=3)
    return np.asarray(attend(*inputs(case, rows), cache_of(case, rows), case.config)[0])


def compute_native(case: Case, rows: list[Row], isa: str) -> np.ndarray:
    past, given = in_tiles(cache_of(case, rows)), inputs(case, rows)
    return np.asarray(native.cached_attention(*given, past, case.config, isa=isa)[0])


def tables(case: Case) -> tuple[np.ndarray, np.ndarray]:
    assert case.rope is not None
    return rotations(case.rope, np.arange(case.slots), case.slots)


def check(case: Case, rows: list[Row], found: np.ndarray) -> None:
    for row, start, context in zip(rows, case.starts, found, strict=True):
        wanted = expected(case, row, start)
        assert np.abs(context - wanted).max() < TOLERANCE * np.abs(wanted).max()


@pytest.mark.matrix(48, 3)
@pytest.mark.parametrize("name", EVERY)
def test_the_portable_form_is_the_reference(name):
    rows = rows_of(EVERY[name], np.random.default_rng(0))
    check(EVERY[name], rows, compute_portable(EVERY[name], rows))


@pytest.mark.again
@pytest.mark.matrix(23, 3)
@pytest.mark.parametrize("name", EVERY)
def test_the_kernels_are_the_reference(kernels, name):
    rows = rows_of(EVERY[name], np.random.default_rng(0))
    for isa in kernels:
        check(EVERY[name], rows, compute_native(EVERY[name], rows, isa))


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", ["plain", "a window", "rounded biases", "linear biases"])
def test_a_prompt_that_is_taken_in_parts_is_the_same(monkeypatch, name):
    case = CASES[name]
    rows = rows_of(case, np.random.default_rng(1))
    whole = compute_portable(case, rows)
    monkeypatch.setattr(xla, "SCORES", 4 * len(rows) * case.heads * case.slots)  # 4 + 4 + 1
    np.testing.assert_allclose(compute_portable(case, rows), whole, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_square_of_the_context():
    """All scores of this prompt's last chunk at once would be 4 GiB."""
    q = jax.ShapeDtypeStruct((1, 512, 32, 64), jnp.float32)
    slots = jax.ShapeDtypeStruct((1, 8, 65536, 64), jnp.float32)
    positions = jax.ShapeDtypeStruct((1, 512), jnp.int32)
    compute = jax.jit(lambda q, k, v, p: xla.attention(q, k, v, xla.CausalMask(p), 8.0))
    compiled = compute.lower(q, slots, slots, positions).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**29


def test_options_change_the_result():
    """Each case would fail if its option were ignored."""
    rng = np.random.default_rng(2)
    rows = rows_of(Case(), rng)
    plain = compute_portable(Case(), rows)
    for name in ("a divisor", "a window", "linear biases", "a cap", "halves"):
        assert np.abs(compute_portable(CASES[name], rows) - plain).max() > 1e-2


def test_slopes_of_other_heads_are_refused(kernels):
    case = Case(alibi=Alibi(slopes=SLOPES[:4]))
    with pytest.raises(Exception, match="slopes are 4, expected one for each head"):
        compute_native(case, rows_of(case, np.random.default_rng(0)), "")


@pytest.mark.parametrize("options", [{"divisor": -1.0}, {"cap": -1.0}, {"window": -1}])
def test_negative_options_are_refused(kernels, options):
    case = replace(Case(), **options)
    with pytest.raises(Exception, match="divisor, cap or window negative"):
        compute_native(case, rows_of(case, np.random.default_rng(0)), "")


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("slots", "window", "holds"), [(64, 8, False), (128, 120, True), (128, 121, False)]
)
def test_a_ring_that_does_not_hold_a_window_and_a_chunk_is_refused(kernels, slots, window, holds):
    case = Case(slots=slots, window=window)  # 9 tokens at a time
    rows = rows_of(case, np.random.default_rng(0))
    past, given = replace(in_tiles(cache_of(case, rows)), ring=1000), inputs(case, rows)
    if holds:
        native.cached_attention(*given, past, case.config)
        return
    with pytest.raises(Exception, match=f"a ring of {slots} slots for a window of {window} and 9"):
        native.cached_attention(*given, past, case.config)


@dataclass(frozen=True)
class Coded:
    """A case whose products are of codes, by scales of their own or by FIXED ones."""

    case: Case
    scales: AttentionScales | None = None

    @property
    def config(self) -> AttentionConfig:
        return replace(self.case.config, int8=True)

    def quantize(self, name: str, x: np.ndarray, first: int = 0) -> HeadCodes:
        rotated = x if name == "v" else rotate_rows(self.case, x, first)
        return quantize_heads(rotated, self.scales and getattr(self.scales, name))

    def expected(self, row: Row, start: int) -> np.ndarray:
        """The reference's INT8 attention of the new tokens, [T, H * Hd]."""
        case = self.case
        q, k, v = (self.quantize("q", row.q, start), *map(self.quantize, "kv", (row.k, row.v)))
        mask = causal_mask(np.arange(start, start + case.tokens), len(row.k), case.window)
        alibi = case.alibi and replace(case.alibi, slopes=case.alibi.slopes[: case.heads])
        return int8_attention(q, k, v, mask, case.divisor, alibi, case.cap)

    def cache(self, rows: list[Row]) -> Slots:
        """The past of each row as codes, with stale numbers in the slots after it."""
        case, shape = self.case, (len(rows), self.case.kv_heads, self.case.slots)
        codes = [np.full((*shape, case.head_dim), 99, np.int8) for _ in "kv"]
        scales = [np.full(shape, np.nan, np.float32) for _ in "kv"]
        for index, (row, start) in enumerate(zip(rows, case.starts, strict=True)):
            for at, x in enumerate((row.k, row.v)):
                found = self.quantize("kv"[at], x[:start])
                codes[at][index, :, :start] = found.codes.swapaxes(0, 1)
                if self.scales is None:
                    scales[at][index, :, :start] = found.scale[..., 0].T
        past = [*codes, *(scales if self.scales is None else ())]
        return Slots(**dict(zip(FIELDS, map(jnp.asarray, past), strict=False)))

    def compute_native(self, rows: list[Row], isa: str) -> np.ndarray:
        given, past = inputs(self.case, rows), in_weight_tiles(self.cache(rows))
        found = native.cached_attention(*given, past, self.config, self.scales, isa=isa)
        return np.asarray(found[0])


def in_weight_tiles(past: Slots) -> CodedSlots:
    """The kernels' form of codes: keys as weights of S outputs, values as weights of S inputs."""
    batch, heads, slots, width = past.keys.shape
    spare = ((0, 0), (0, 0), (0, 0), (0, round_up(width) - width))
    keys, values = (jnp.pad(array, spare) for array in (past.keys, past.values))
    keys = keys.reshape(batch, heads, slots // KEY_SLOTS, KEY_SLOTS, -1, 4).swapaxes(3, 4)
    values = values.reshape(batch, heads, slots // 4, 4, -1, KEY_SLOTS).transpose(0, 1, 4, 2, 5, 3)
    found = keys, values, *past.arrays[2:]
    return CodedSlots(**dict(zip(FIELDS, found, strict=False)))


CODED = {
    f"{name}, {kind}": Coded(case, scales)
    for name, case in CASES.items()
    for kind, scales in (("dynamic", None), ("static", FIXED))
}


def check_codes(coded: Coded, rows: list[Row], found: np.ndarray) -> None:
    """As the reference, but for few heads with a weight at a tie, which may be off by one code."""
    wanted = np.stack(list(map(coded.expected, rows, coded.case.starts)))
    off = np.abs(found - wanted).reshape(*wanted.shape[:2], coded.case.heads, -1).max(axis=-1)
    off /= np.abs(wanted).max()
    assert (off > TOLERANCE).sum() <= 1 + 0.01 * off.size and off.max() < 1 / 127


@pytest.mark.again
@pytest.mark.matrix(46, 3)
@pytest.mark.parametrize("name", CODED)
def test_the_kernels_multiply_codes_as_the_reference(kernels, name):
    rows = rows_of(CODED[name].case, np.random.default_rng(0))
    for isa in kernels:
        check_codes(CODED[name], rows, CODED[name].compute_native(rows, isa))


@pytest.mark.matrix(4)
@pytest.mark.again
@pytest.mark.parametrize("scales", [None, FIXED])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize(("tokens", "kv_heads"), [(300, 2), (700, 1)])
def test_neither_chunks_nor_batches_change_a_bit_of_int8_attention(
    kernels, scales, window, tokens, kv_heads
):
    """Threads share the steps of one key-value head, if there are enough of them."""
    shape = {"tokens": tokens, "slots": tokens + 4, "kv_heads": kv_heads}
    whole = Coded(Case(starts=(0, 0), window=window, **shape), scales)
    rows = rows_of(whole.case, np.random.default_rng(3))
    for isa in kernels:
        found = whole.compute_native(rows, isa)
        for start, count in ((tokens - 10, 10), (tokens - 1, 1), (128, 9), (127, 17)):
            part = replace(whole, case=replace(whole.case, starts=(start,), tokens=count))
            end = start + count
            some = Row(rows[1].q[start:end], rows[1].k[:end], rows[1].v[:end])
            alone = part.compute_native([some], isa)[0]
            np.testing.assert_array_equal(alone, found[1, start:end])


@pytest.mark.again
def test_queries_that_are_not_numbers_give_no_numbers(kernels):
    coded = Coded(Case(starts=(5,), tokens=2), FIXED)
    rows = rows_of(coded.case, np.random.default_rng(4))
    rows[0].q[1, 2, 3] = np.inf
    for isa in kernels:
        found = coded.compute_native(rows, isa).reshape(2, coded.case.heads, -1)
        assert np.isnan(found[1, 2]).all() and np.isfinite(found[0]).all()


@pytest.mark.again
def test_a_value_that_is_not_finite_makes_later_results_nan(kernels):
    """Its scale is NaN, and so is what every later token reads of its head."""
    coded = Coded(Case(starts=(0,), tokens=300, slots=304), None)
    rows = rows_of(coded.case, np.random.default_rng(4))
    rows[0].v[20, 1, 2] = np.inf
    for isa in kernels:
        found = coded.compute_native(rows, isa).reshape(300, coded.case.heads, -1)
        assert np.isfinite(found[:20]).all() and np.isfinite(found[:, :3]).all()
        assert np.isnan(found[20:, 3:]).all()
